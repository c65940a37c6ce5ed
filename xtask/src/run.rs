//! Not yet.
pub(crate) fn run(_: &crate::workspace::Workspace, _: &[std::ffi::OsString]) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
