//! Waiting, switching, migrating. Oracles: /proc/PID/schedstat and /proc/PID/status of every
//! thread, read while the threads sleep, and migrations forced with sched_setaffinity(2).

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, agree, same},
    needs::Need,
    worker::{TaskStatistics, Worker},
};

pub const TESTS: &[Test] = &[
    ("sched::waiting_for_a_cpu", &[Need::Agent], waiting),
    (
        "sched::switches_and_periods_are_exact",
        &[Need::Agent],
        switches,
    ),
    (
        "sched::the_histogram_is_the_sum_of_its_parts",
        &[Need::Agent],
        histogram,
    ),
    (
        "sched::preemption_by_itself_and_by_others",
        &[Need::Agent],
        preemptions,
    ),
    (
        "sched::migrations",
        &[Need::Agent, Need::TwoCpus],
        migrations,
    ),
];

const WAIT: &str = "container_cpu_schedstat_runqueue_seconds_total";
const PERIODS: &str = "container_cpu_schedstat_run_periods_total";
const SWITCHES: &str = "container_sched_context_switches_total";
const PREEMPTIONS: &str = "container_sched_preemptions_total";
const LATENCY: &str = "container_sched_runqueue_latency_seconds";

/// Makes /proc/PID/schedstat show values. Kernels without SCHEDSTATS do this only on request.
struct DelayAccounting(Option<String>);

const SYSCTL: &str = "/proc/sys/kernel/task_delayacct";

impl DelayAccounting {
    fn on() -> Self {
        let before = std::fs::read_to_string(SYSCTL).ok();
        let _ = std::fs::write(SYSCTL, "1");
        Self(before)
    }
}

impl Drop for DelayAccounting {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(SYSCTL, before);
        }
    }
}

/// The increase of the kernel's statistics and of the agent's counters during a job.
struct Job {
    statistics: TaskStatistics,
    before: Metrics,
    after: Metrics,
    id: String,
}

impl Job {
    fn gained(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let mut all = vec![("id", self.id.as_str())];
        all.extend_from_slice(labels);
        self.after.sum(name, &all) - self.before.sum(name, &all)
    }
}

/// Gives all workers, in one cgroup, their orders at once and waits for all of them.
fn measure(agent: &Agent, cgroup: &Cgroup, workers: &mut [Worker], orders: &[&str]) -> Result<Job> {
    let sum = |workers: &[Worker]| -> Result<TaskStatistics> {
        workers
            .iter()
            .try_fold(TaskStatistics::default(), |mut sum, worker| {
                let statistics = worker.statistics()?;
                sum.run += statistics.run;
                sum.wait += statistics.wait;
                sum.periods += statistics.periods;
                sum.voluntary += statistics.voluntary;
                sum.involuntary += statistics.involuntary;
                Ok(sum)
            })
    };
    let (statistics, before) = (sum(workers)?, agent.scrape()?);
    for order in orders {
        for worker in workers.iter_mut() {
            worker.order(order)?;
        }
        for worker in workers.iter_mut() {
            worker.wait_done()?;
        }
    }
    let (end, after) = (sum(workers)?, agent.scrape()?);
    Ok(Job {
        statistics: end - statistics,
        before,
        after,
        id: cgroup.id.clone(),
    })
}

fn workers(cgroup: &Cgroup, count: usize) -> Result<Vec<Worker>> {
    let mut workers = (0..count)
        .map(|_| Worker::start(cgroup))
        .collect::<Result<Vec<_>>>()?;
    for worker in &mut workers {
        worker.run("pin 0")?;
    }
    Ok(workers)
}

fn waiting() -> Result<()> {
    let _accounting = DelayAccounting::on();
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut workers = workers(&cgroup, 4)?;
    let job = measure(&agent, &cgroup, &mut workers, &["spin 400"])?;
    ensure!(
        job.statistics.wait > 1.0,
        "four tasks on one CPU waited for {} s only",
        job.statistics.wait
    );
    agree(
        "waiting",
        job.gained(WAIT, &[]),
        job.statistics.wait,
        0.02,
        0.0,
    )?;
    agree(
        "running",
        job.gained("container_cpu_schedstat_run_seconds_total", &[]),
        job.statistics.run,
        0.001,
        0.0,
    )
}

fn switches() -> Result<()> {
    let _accounting = DelayAccounting::on();
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut workers = workers(&cgroup, 3)?;
    let orders = ["sleeps 300", "spin 100", "pingpong 500", "threads 3 40"];
    let job = measure(&agent, &cgroup, &mut workers, &orders)?;
    ensure!(
        job.statistics.voluntary > 900.0 && job.statistics.involuntary > 10.0,
        "{:?}",
        job.statistics
    );
    same(
        "voluntary",
        job.gained(SWITCHES, &[("type", "voluntary")]),
        job.statistics.voluntary,
    )?;
    same(
        "involuntary",
        job.gained(SWITCHES, &[("type", "involuntary")]),
        job.statistics.involuntary,
    )?;
    same(
        "preemptions",
        job.gained(PREEMPTIONS, &[]),
        job.statistics.involuntary,
    )?;
    same(
        "run periods",
        job.gained(PERIODS, &[]),
        job.statistics.periods,
    )
}

fn histogram() -> Result<()> {
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut workers = workers(&cgroup, 3)?;
    let job = measure(&agent, &cgroup, &mut workers, &["spin 200", "sleeps 100"])?;
    let id = [("id", cgroup.id.as_str())];
    let count = job.after.of(&cgroup.id, &format!("{LATENCY}_count"))?;
    same("count", count, job.after.of(&cgroup.id, PERIODS)?)?;
    let all = [id[0], ("le", "+Inf")];
    same(
        "+Inf",
        job.after.get(&format!("{LATENCY}_bucket"), &all)?,
        count,
    )?;
    same(
        "sum",
        job.after.of(&cgroup.id, &format!("{LATENCY}_sum"))?,
        job.after.of(&cgroup.id, WAIT)?,
    )?;
    same(
        "buckets",
        job.after.count(&format!("{LATENCY}_bucket"), &id) as f64,
        24.0,
    )?;
    // Tasks that share a CPU wait for milliseconds, not microseconds or seconds.
    let within = |bound| {
        job.after
            .get(&format!("{LATENCY}_bucket"), &[id[0], ("le", bound)])
    };
    ensure!(within("1")? == count && within("0.0009765625")? < count);
    Ok(())
}

fn preemptions() -> Result<()> {
    let agent = Agent::start(&[])?;
    let (mine, other) = (Cgroup::new()?, Cgroup::new()?);
    // Within one cgroup: two real-time tasks that take turns. Other tasks of the machine get the
    // CPU only when the kernel throttles real-time tasks. The kernel counts a yield as involuntary.
    let mut pair = workers(&mine, 2)?;
    for worker in &mut pair {
        worker.run("policy fifo")?;
    }
    let job = measure(&agent, &mine, &mut pair, &["spin-yielding 300"])?;
    let (own, foreign) = (
        job.gained(PREEMPTIONS, &[("by", "self")]),
        job.gained(PREEMPTIONS, &[("by", "other")]),
    );
    ensure!(
        own > 100.0 && own > 10.0 * foreign,
        "by self {own}, by other {foreign}"
    );
    drop(pair);
    // Against another cgroup.
    let mut opponents = workers(&other, 1)?;
    opponents
        .first_mut()
        .context("no opponent")?
        .order("forever")?;
    let mut lone = workers(&mine, 1)?;
    let job = measure(&agent, &mine, &mut lone, &["spin 300"])?;
    let (own, foreign) = (
        job.gained(PREEMPTIONS, &[("by", "self")]),
        job.gained(PREEMPTIONS, &[("by", "other")]),
    );
    ensure!(
        foreign > 10.0 && own == 0.0,
        "by other {foreign}, by self {own}"
    );
    Ok(())
}

fn migrations() -> Result<()> {
    const MIGRATIONS: &str = "container_sched_migrations_total";
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new()?;
    let mut workers = workers(&cgroup, 1)?;
    // It starts on CPU 0. Of the 201 changes of the mask, the first one changes nothing.
    let job = measure(&agent, &cgroup, &mut workers, &["migrate 201"])?;
    same("migrations", job.gained(MIGRATIONS, &[]), 200.0)
}
