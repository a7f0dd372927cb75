//! stub
#[derive(Debug, clap::Args)]
pub struct Options {}
pub fn demo(_: &Options) -> anyhow::Result<()> {
    Ok(())
}
