//! The system calls: the only module with `unsafe`, and the only one that knows the system's numbers and layouts.
//!
//! Everything here does one thing, reports the system's own error, and knows nothing of builds. `names` is compiled everywhere, so that a test can
//! hold it against FreeBSD's headers on any machine.
#![allow(unsafe_code)]

#[cfg(target_os = "freebsd")]
mod freebsd;
pub(crate) mod names;

#[cfg(target_os = "freebsd")]
pub use freebsd::*;

#[cfg(any(target_os = "freebsd", test))]
use std::io;

#[cfg(any(target_os = "freebsd", test))]
use crate::User;

/// Writes `/etc/pwd.db` where there is no FreeBSD: not at all.
#[cfg(all(test, not(target_os = "freebsd")))]
pub(crate) fn write_user_database(_path: &std::path::Path, _users: &[User]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The pairs of a user database: by name, by place in the list, by number, and the version of all that.
#[cfg(any(target_os = "freebsd", test))]
pub(crate) fn user_records(users: &[User]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    use names::{PW_KEYBYNAME, PW_KEYBYNUM, PW_KEYBYUID, PWD_VERSION, PWD_VERSION_KEY, PWF_ALL};
    let mut records = vec![(PWD_VERSION_KEY.to_vec(), vec![PWD_VERSION])];
    for (number, user) in (1_u32..).zip(users) {
        let mut record = Vec::new();
        let text = |record: &mut Vec<u8>, text: &str| {
            record.extend_from_slice(text.as_bytes());
            record.push(0);
        };
        if [&user.name, &user.comment, &user.home, &user.shell].iter().any(|text| text.contains(['\0', ':', '\n'])) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        text(&mut record, &user.name);
        text(&mut record, "*");
        // User, group, time of the last change.
        for number in [user.uid, user.gid, 0] {
            record.extend(number.to_be_bytes());
        }
        // Login class.
        text(&mut record, "");
        text(&mut record, &user.comment);
        text(&mut record, &user.home);
        text(&mut record, &user.shell);
        // Time of expiry, which fields are set.
        for number in [0, PWF_ALL] {
            record.extend(number.to_be_bytes());
        }
        let key = |kind: u8, rest: &[u8]| [&[kind & 0xcf | PWD_VERSION << 4], rest].concat();
        for key in
            [key(PW_KEYBYNAME, user.name.as_bytes()), key(PW_KEYBYNUM, &number.to_be_bytes()), key(PW_KEYBYUID, &user.uid.to_be_bytes())]
        {
            records.push((key, record.clone()));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_layout_of_pwd_mkdb() {
        let user =
            User { name: "a".to_owned(), uid: 0x0102_0304, gid: 7, comment: "b".to_owned(), home: "/".to_owned(), shell: "/c".to_owned() };
        let record = b"a\0*\0\x01\x02\x03\x04\0\0\0\x07\0\0\0\0\0b\0/\0/c\0\0\0\0\0\0\0\x03\xff".to_vec();
        let expected = [
            (b"\xffVERSION".to_vec(), b"\x04".to_vec()),
            (b"\x41a".to_vec(), record.clone()),
            (b"\x42\0\0\0\x01".to_vec(), record.clone()),
            (b"\x43\x01\x02\x03\x04".to_vec(), record),
        ];
        assert_eq!(user_records(std::slice::from_ref(&user)).unwrap(), expected);
        assert!(user_records(&[User { home: "/:0:0".to_owned(), ..user }]).is_err());
    }
}
