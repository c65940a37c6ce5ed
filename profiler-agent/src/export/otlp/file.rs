//! `.otlp`: one serialized `ProfilesData`, as profcheck and the tools of the profiles group read it.

use std::io::{self, Write};

use super::encode::{Options, encode};
use crate::profile::Profile;

/// Writes a profile as one `ProfilesData`, however large: a file has no limit.
///
/// # Errors
/// Those of the writer.
pub fn write(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let options = Options {
        limit: usize::MAX,
        ..Options::default()
    };
    for request in encode(profile, &options) {
        out.write_all(&request.bytes)?;
    }
    Ok(())
}
