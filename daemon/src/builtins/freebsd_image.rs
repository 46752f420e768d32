//! `builtin:freebsd-image`: the disk image of a root file system.

use std::io::Write;

use super::{BuiltinError, BuiltinInput};

/// Makes the image.
pub fn image(input: &BuiltinInput, _log: &mut dyn Write) -> Result<(), BuiltinError> {
    Err(input.system_error("the image library is not linked"))
}
