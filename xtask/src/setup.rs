//! Not yet.
pub(crate) fn check(_: &crate::workspace::Workspace) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
pub(crate) fn install(_: &crate::workspace::Workspace) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
