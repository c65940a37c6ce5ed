//! `.otlp`: one serialized `ProfilesData`, as profcheck and the tools of the profiles group read it.

use std::io::{self, Write};

use super::encode::{Options, encode};
use crate::profile::Profile;

/// Writes a profile as one `ProfilesData`, however large: a file has no limit.
///
/// # Errors
/// Those of the writer.
pub fn write(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    for request in encode(profile, &Options { limit: usize::MAX }) {
        out.write_all(&request.bytes)?;
    }
    Ok(())
}
