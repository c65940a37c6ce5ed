//! Not yet.
pub(crate) fn run(_: &crate::workspace::Workspace) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
