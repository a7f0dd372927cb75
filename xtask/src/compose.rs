//! `compose`: checks the stack of deploy/compose.

use anyhow::Result;
use deploy_checks::compose;

use crate::{setup::setup_tests, shell::has, tally::Tally};

/// Runs `cargo xtask compose`.
pub fn compose() -> Result<()> {
    setup_tests()?;
    let mut tally = Tally::default();
    steps(&mut tally, true);
    tally.close()
}

/// All checks. Unless `strict`, a missing docker-compose is a warning, and its check is left out.
pub fn steps(tally: &mut Tally, strict: bool) {
    tally.counted("compose stack", |counts| {
        compose::check()?;
        counts.passed += 1;
        Ok(())
    });
    if !has("docker-compose") && !strict {
        eprintln!(
            "xtask: warning: SKIPPED: compose.yaml is not read by docker-compose, which is missing: \
             apt-get install docker-compose"
        );
        return;
    }
    tally.counted("compose stack, by docker-compose", |counts| {
        compose::by_docker_compose()?;
        counts.passed += 1;
        Ok(())
    });
}
