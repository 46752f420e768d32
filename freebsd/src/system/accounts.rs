//! Users and groups: `master.passwd`, `passwd`, `group`, and the databases of passwd(5) that libc takes users from.

use std::collections::{BTreeMap, BTreeSet};

use super::model::OperatingSystem;

/// The texts and databases of users and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// `master.passwd`, for root's eyes.
    pub master: String,
    /// `passwd`.
    pub passwd: String,
    /// `group`.
    pub group: String,
    /// `pwd.db`.
    pub database: Vec<u8>,
    /// `spwd.db`, for root's eyes.
    pub secure_database: Vec<u8>,
}

/// Who there is when the base does not say: enough for a system to start.
const MASTER: &str = "\
root::0:0::0:0:Charlie &:/root:/bin/sh
daemon:*:1:1::0:0:Owner of many system processes:/root:/usr/sbin/nologin
operator:*:2:5::0:0:System &:/:/usr/sbin/nologin
bin:*:3:7::0:0:Binaries Commands and Source:/:/usr/sbin/nologin
sshd:*:22:22::0:0:Secure Shell Daemon:/var/empty:/usr/sbin/nologin
unbound:*:59:59::0:0:Unbound DNS Resolver:/var/unbound:/usr/sbin/nologin
_dhcp:*:65:65::0:0:dhcp programs:/var/empty:/usr/sbin/nologin
uucp:*:66:66::0:0:UUCP pseudo-user:/var/spool/uucppublic:/usr/local/libexec/uucp/uucico
www:*:80:80::0:0:World Wide Web Owner:/nonexistent:/usr/sbin/nologin
ntpd:*:123:123::0:0:NTP Daemon:/var/db/ntp:/usr/sbin/nologin
nobody:*:65534:65534::0:0:Unprivileged user:/nonexistent:/usr/sbin/nologin
";
const GROUP: &str = "\
wheel:*:0:root
daemon:*:1:
kmem:*:2:
sys:*:3:
tty:*:4:
operator:*:5:root
mail:*:6:
bin:*:7:
staff:*:20:
sshd:*:22:
guest:*:31:
video:*:44:
unbound:*:59:
_dhcp:*:65:
www:*:80:
ntpd:*:123:
nobody:*:65534:
";

/// A line of colons, with what its first field is.
fn entries(text: &str) -> impl Iterator<Item = (&str, Vec<String>)> {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(|line| {
        let fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        let name = line.split(':').next().filter(|name| !name.is_empty())?;
        Some((name, fields))
    })
}

/// A line is replaced where its name is, or comes last.
fn put(lines: &mut Vec<Vec<String>>, line: Vec<String>) {
    match lines.iter_mut().find(|old| old.first() == line.first()) {
        Some(old) => *old = line,
        None => lines.push(line),
    }
}

impl Accounts {
    /// Those of the base, by the texts of its `master.passwd` and `group` where it has them, with those of the system.
    ///
    /// # Errors
    /// Two users or groups with one number, or a user whose group nobody knows, in words that name the field.
    pub fn compose(system: &OperatingSystem, master: Option<&str>, group: Option<&str>) -> Result<Accounts, String> {
        let mut groups: Vec<Vec<String>> = entries(group.unwrap_or(GROUP)).map(|(_, fields)| fields).filter(|f| f.len() == 4).collect();
        let mut users: Vec<Vec<String>> = entries(master.unwrap_or(MASTER)).map(|(_, fields)| fields).filter(|f| f.len() == 10).collect();
        for group in &system.groups {
            put(&mut groups, vec![group.name.clone(), "*".into(), group.gid.to_string(), group.members.join(",")]);
        }
        let mut extra = Vec::new();
        if let Some(fruixd) = &system.services.fruixd {
            let gid = fruixd.first_uid.to_string();
            let names: Vec<String> = (1..=fruixd.build_users).map(|number| format!("fruixbuild{number:02}")).collect();
            put(&mut groups, vec!["fruixbuild".into(), "*".into(), gid.clone(), names.join(",")]);
            for (name, uid) in names.into_iter().zip(fruixd.first_uid..) {
                let rest = ["", "0", "0", "Builder", "/var/empty", "/usr/sbin/nologin"].map(str::to_owned);
                extra.push([vec![name, "*".into(), uid.to_string(), gid.clone()], rest.to_vec()].concat());
            }
        }
        let gids: BTreeMap<String, String> =
            groups.iter().filter_map(|group| Some((group.first()?.clone(), group.get(2)?.clone()))).collect();
        for user in &system.users {
            let gid = gids.get(&user.group).ok_or_else(|| format!("users: `{}': there is no group `{}'", user.name, user.group))?;
            let line =
                [&user.name, &user.password, &user.uid.to_string(), gid, &user.class, "0", "0", &user.comment, &user.home, &user.shell];
            put(&mut users, line.map(str::to_owned).to_vec());
            for name in &user.groups {
                let group = groups.iter_mut().find(|group| group.first() == Some(name)).and_then(|group| group.get_mut(3));
                let members = group.ok_or_else(|| format!("users: `{}': there is no group `{name}'", user.name))?;
                if !members.split(',').any(|member| member == user.name) {
                    if !members.is_empty() {
                        members.push(',');
                    }
                    members.push_str(&user.name);
                }
            }
        }
        for line in extra {
            put(&mut users, line);
        }
        for (what, lines) in [("users", &users), ("groups", &groups)] {
            let mut seen: BTreeMap<&String, &String> = BTreeMap::new();
            for line in lines {
                let [name, _, number, ..] = line.as_slice() else { continue };
                number.parse::<u32>().map_err(|_| format!("{what}: `{name}' has the number `{number}'"))?;
                // The base itself has two names for root.
                if name != "toor"
                    && let Some(other) = seen.insert(number, name)
                {
                    return Err(format!("{what}: `{other}' and `{name}' both have the number {number}; give one another"));
                }
            }
        }
        Accounts::of_lines(&users, &groups)
    }

    fn of_lines(users: &[Vec<String>], groups: &[Vec<String>]) -> Result<Accounts, String> {
        let join = |lines: &[Vec<String>]| lines.iter().map(|line| line.join(":") + "\n").collect::<String>();
        let passwd: String = users
            .iter()
            .filter_map(|line| match line.as_slice() {
                [name, _, uid, gid, _, _, _, comment, home, shell] => Some(format!("{name}:*:{uid}:{gid}:{comment}:{home}:{shell}\n")),
                _ => None,
            })
            .collect();
        Ok(Accounts {
            database: database(users, false)?,
            secure_database: database(users, true)?,
            master: join(users),
            passwd,
            group: join(groups),
        })
    }

    /// What a machine has after it goes from one system to another. `there` are its texts of `master.passwd` and `group`: users and groups of its
    /// own stay, and what was changed of a declared one, such as a password, stays field by field unless the new system changes that, too. Members of
    /// a group of its own stay. What only the old system declares goes; what somebody has removed stays away. Comments stay where they are.
    ///
    /// # Errors
    /// A line that cannot be understood, or that the new system is at odds with, in words that name file, line and remedy: nothing of a machine's own is
    /// to be lost or to become somebody else's.
    pub fn merge(old: &Accounts, new: &Accounts, there: (&str, &str)) -> Result<Accounts, String> {
        let (users, master) = merge_file("/etc/master.passwd", 10, (&old.master, &new.master, there.0))?;
        if !users.iter().any(|line| line.first().is_some_and(|name| name == "root")) {
            return Err("/etc/master.passwd: there is no `root' on this machine; put it back".to_owned());
        }
        let (groups, group) = merge_file("/etc/group", 4, (&old.group, &new.group, there.1))?;
        Ok(Accounts { master, group, ..Accounts::of_lines(&users, &groups)? })
    }

    /// Numbers of users by name.
    #[must_use]
    pub fn uid(&self, name: &str) -> Option<u32> {
        entries(&self.master).find(|(found, _)| *found == name)?.1.get(2)?.parse().ok()
    }

    /// Numbers of groups by name.
    #[must_use]
    pub fn gid(&self, name: &str) -> Option<u32> {
        entries(&self.group).find(|(found, _)| *found == name)?.1.get(2)?.parse().ok()
    }

    /// The number of a user's own group.
    #[must_use]
    pub fn gid_of_user(&self, name: &str) -> Option<u32> {
        entries(&self.master).find(|(found, _)| *found == name)?.1.get(3)?.parse().ok()
    }
}

/// The entries of one of the files after [`Accounts::merge`], and its text. The texts are those of the old system, of the new one, and of the machine.
fn merge_file(file: &str, count: usize, (old, new, there): (&str, &str, &str)) -> Result<(Vec<Vec<String>>, String), String> {
    const NUMBER: usize = 2;
    const MEMBERS: usize = 3;
    type Lines = BTreeMap<String, Vec<String>>;
    let declared = |text: &str| -> Lines { entries(text).map(|(name, fields)| (name.to_owned(), fields)).collect() };
    let (before, after) = (declared(old), declared(new));
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut text = String::new();
    // Of whom a number is on the machine, and of whom it is going to be.
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut present = BTreeSet::new();
    for (index, line) in there.lines().enumerate() {
        let told = |what: &str| format!("{file}:{}: {what}; nothing was changed", index.saturating_add(1));
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            text.push_str(line);
            text.push('\n');
            continue;
        }
        let fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        let numbers = if count == 4 { &[NUMBER][..] } else { &[NUMBER, 3] };
        let numeric = numbers.iter().all(|at| fields.get(*at).is_some_and(|number| number.parse::<u32>().is_ok()));
        let name = fields.first().cloned().unwrap_or_default();
        if fields.len() != count || name.is_empty() || !numeric {
            return Err(told(&format!("is no entry of {count} fields with numbers in it; correct it, or put `#' before it")));
        }
        if !present.insert(name.clone()) {
            return Err(told(&format!("`{name}' is there twice; remove one")));
        }
        owners.entry(fields.get(NUMBER).cloned().unwrap_or_default()).or_default().insert(name.clone());
        let merged = match (before.get(&name), after.get(&name)) {
            (Some(_), None) => continue,
            (None, Some(wanted)) if *wanted != fields => {
                return Err(told(&format!(
                    "the new system declares `{name}', which is this machine's own; remove or rename one of the two"
                )));
            }
            (Some(was), Some(wanted)) => (was.iter().zip(wanted).zip(&fields).enumerate())
                .map(|(at, ((was, wanted), is))| match was == wanted {
                    true => is.clone(),
                    false if count == 4 && at == MEMBERS => merge_members(was, wanted, is),
                    false => wanted.clone(),
                })
                .collect(),
            (None, _) => fields,
        };
        text.push_str(&(merged.join(":") + "\n"));
        all.push(merged);
    }
    for (name, wanted) in entries(new).map(|(name, fields)| (name.to_owned(), fields)) {
        // What both systems declare and somebody has removed stays away.
        if !present.contains(&name) && !before.contains_key(&name) {
            text.push_str(&(wanted.join(":") + "\n"));
            all.push(wanted);
        }
    }
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for line in &all {
        let [name, _, number, ..] = line.as_slice() else { continue };
        if let Some(other) = seen.insert(number, name) {
            let known = owners.get(number).is_some_and(|names| names.contains(name) && names.contains(other));
            if !known && name != "toor" {
                return Err(format!(
                    "{file}: `{other}' and `{name}' would both have the number {number}; give one of them another; nothing was changed"
                ));
            }
        }
    }
    Ok((all, text))
}

/// Members of a group: those that are there, without those that only the old system names, with those that only the new one does.
fn merge_members(old: &str, new: &str, there: &str) -> String {
    let names = |text: &str| text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (names(old), names(new));
    let mut all: Vec<String> = names(there).into_iter().filter(|name| !old.contains(name) || new.contains(name)).collect();
    for name in new {
        if !old.contains(&name) && !all.contains(&name) {
            all.push(name);
        }
    }
    all.join(",")
}

/// The records that pwd_mkdb(8) writes, in its order: the version, then each user by name, by place and by number.
/// Formats: `include/pwd.h`, `usr.sbin/pwd_mkdb/pwd_mkdb.c` of FreeBSD 15.1.
fn database(users: &[Vec<String>], secure: bool) -> Result<Vec<u8>, String> {
    let mut uids = BTreeSet::new();
    const VERSION: u8 = 4;
    let tag = |kind: u8| (kind & 0xCF) | (VERSION << 4);
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = vec![(b"\xFFVERSION".to_vec(), vec![VERSION])];
    for (place, line) in (1_u32..).zip(users) {
        let [name, password, uid, gid, class, change, expire, comment, home, shell] = line.as_slice() else { continue };
        // Who has no number is not root.
        let (Ok(_), Ok(_)) = (uid.parse::<u32>(), gid.parse::<u32>()) else { continue };
        let number = |text: &str| text.parse::<u32>().unwrap_or(0);
        let given = [name, password, uid, gid, change, class, comment, home, shell, expire];
        let fields = (0_u32..).zip(given).filter(|(_, text)| !text.is_empty()).fold(0_u32, |fields, (bit, _)| fields | 1 << bit);
        let mut data = Vec::new();
        let text = |data: &mut Vec<u8>, text: &str| {
            data.extend_from_slice(text.as_bytes());
            data.push(0);
        };
        let scalar = |data: &mut Vec<u8>, number: u32| data.extend_from_slice(&number.to_be_bytes());
        text(&mut data, name);
        text(&mut data, if secure { password } else { "*" });
        scalar(&mut data, number(uid));
        scalar(&mut data, number(gid));
        scalar(&mut data, number(change));
        text(&mut data, class);
        text(&mut data, comment);
        text(&mut data, home);
        text(&mut data, shell);
        scalar(&mut data, number(expire));
        scalar(&mut data, fields);
        let by_uid = [&[tag(0x33)][..], &number(uid).to_be_bytes()].concat();
        records.push(([&[tag(0x31)][..], name.as_bytes()].concat(), data.clone()));
        records.push(([&[tag(0x32)][..], &place.to_be_bytes()].concat(), data.clone()));
        if uids.insert(number(uid)) {
            records.push((by_uid, data));
        }
    }
    hash_file(&records)
        .ok_or_else(|| "users: too many have names that hash alike, or one has several entries; rename or remove some".to_owned())
}

/// The size of a page, in bytes.
const PAGE: usize = 4096;
/// How long key and value of a record may be together, in bytes, to have room on a page.
pub(super) const LONGEST: usize = PAGE - 14;

/// A hash file of Berkeley DB 1.85 with pages of 4096 bytes, byte order 4321, as libc's hash(3) writes it when no page overflows: there are
/// as many buckets as it takes (pwd_mkdb's eight at least). Format: `lib/libc/db/hash/{hash,page}.h`.
///
/// Records that are longer than [`LONGEST`] are left out.
pub(super) fn hash_file(records: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    const FIRST: u32 = 3;
    /// A file of a million buckets would be 4 GiB: longer records than a page are not written at all.
    const LAST: u32 = 20;
    let hash = |key: &[u8]| key.iter().fold(0_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)));
    // Room must be left on each page for the address of another one.
    let fits = |pairs: &[&(Vec<u8>, Vec<u8>)]| pairs.iter().map(|(key, data)| key.len() + data.len() + 4).sum::<usize>() + 10 <= PAGE;
    let records: Vec<_> = records.iter().filter(|record| fits(&[record])).collect();
    let spread = |shift: u32| {
        let mut buckets = vec![Vec::new(); 1 << shift];
        for record in &records {
            if let Some(bucket) = buckets.get_mut((hash(&record.0) & ((1 << shift) - 1)) as usize) {
                bucket.push(*record);
            }
        }
        buckets
    };
    // Keys of real users spread; those that are chosen so that they do not would make the file as large as they like.
    let most = (records.len().max(1).ilog2() + 3).clamp(FIRST, LAST);
    let mut shift = FIRST;
    let mut buckets = spread(shift);
    while shift < most && !buckets.iter().all(|bucket| fits(bucket)) {
        shift += 1;
        buckets = spread(shift);
    }
    if !buckets.iter().all(|bucket| fits(bucket)) {
        return None;
    }
    let last = (1_u32 << shift) - 1;
    let mut spares = [0_u32; 32];
    for spare in spares.iter_mut().skip(shift as usize).take(2) {
        *spare = shift + 1;
    }
    let mut header: Vec<u32> = vec![
        0x06_1561,              // magic
        2,                      // version
        4321,                   // byte order
        PAGE as u32,            // page size, and its logarithm
        12,                     //
        256,                    // directory size
        256,                    // segment size, and its logarithm
        8,                      //
        shift,                  // where overflow pages are made
        2,                      // the last one freed
        last,                   // the last bucket
        last << 1 | 1,          // masks for all buckets, and for half of them
        last,                   //
        32,                     // how full buckets become
        records.len() as u32,   // keys
        1,                      // pages of this header
        hash(b"%$sniglet^&\0"), // shows which hash function it is
    ];
    header.extend(spares);
    let mut file: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
    // The addresses of maps of overflow pages: there is one, in the first overflow page.
    file.extend_from_slice(&((shift as u16) << 11 | 1).to_be_bytes());
    file.resize(PAGE, 0);
    for bucket in &buckets {
        let mut page = vec![0_u8; PAGE];
        let mut words: Vec<u16> = vec![(bucket.len() * 2) as u16];
        let mut end = PAGE;
        for (key, data) in bucket {
            for part in [key, data] {
                end -= part.len();
                if let Some(place) = page.get_mut(end..end + part.len()) {
                    place.copy_from_slice(part);
                }
                words.push(end as u16);
            }
        }
        words.push((end - (words.len() + 2) * 2) as u16);
        words.push(end as u16);
        for (place, word) in page.chunks_exact_mut(2).zip(&words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        // What was never written is a hole.
        if bucket.is_empty() {
            page.fill(0);
        }
        file.extend_from_slice(&page);
    }
    // The map: as many bits as overflow pages may be are clear, but for the map's own.
    let bits = u32::MAX << (shift + 1) | 1;
    file.extend_from_slice(&bits.to_be_bytes());
    file.resize((buckets.len() + 2) * PAGE, 0xFF);
    Some(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn accounts(master: &str, group: &str) -> Accounts {
        let lines = |text: &str| entries(text).map(|(_, fields)| fields).collect::<Vec<_>>();
        Accounts::of_lines(&lines(master), &lines(group)).unwrap()
    }

    #[test]
    fn what_a_machine_has_of_its_own_stays() {
        let old = accounts(
            "root:*:0:0::0:0:R:/root:/bin/sh\nanna:*:1001:20::0:0:A:/home/anna:/bin/sh\nold:*:1002:20::0:0:O:/:/bin/sh\n",
            "staff:*:20:anna\n",
        );
        let new = accounts(
            "root:*:0:0::0:0:R:/root:/bin/csh\nanna:*:1001:20::0:0:A:/home/anna:/bin/sh\nnew:*:1003:20::0:0:N:/:/bin/sh\n",
            "staff:*:20:anna,new\n",
        );
        let there = "root:$6$x:0:0::0:0:Boss:/root:/bin/sh\nanna:*:1001:20::0:0:A:/home/anna:/bin/zsh\nold:$6$y:1002:20::0:0:O:/:/bin/sh\ncarl:$6$z:2000:20::0:0:C:/:/bin/sh\n";
        let merged = Accounts::merge(&old, &new, (there, "staff:*:20:anna,carl\nown:*:2000:carl\n")).unwrap();
        let expected = "root:$6$x:0:0::0:0:Boss:/root:/bin/csh\nanna:*:1001:20::0:0:A:/home/anna:/bin/zsh\ncarl:$6$z:2000:20::0:0:C:/:/bin/sh\nnew:*:1003:20::0:0:N:/:/bin/sh\n";
        assert_eq!(merged.master, expected);
        assert_eq!(merged.group, "staff:*:20:anna,carl,new\nown:*:2000:carl\n");
        // With itself nothing changes.
        assert_eq!(Accounts::merge(&new, &new, (&merged.master, &merged.group)).unwrap(), merged);
    }
}
