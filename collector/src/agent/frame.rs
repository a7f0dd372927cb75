//! A frame: everything that was read at one moment, as an immutable value.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use super::lock;
use crate::{
    cgroup::Nodes,
    exposition::{Body, Encoder, Format},
    source::{EncodingReport, Reading, Report},
};

/// Values of all cgroups at one moment. A node number means the same cgroup throughout a frame,
/// whatever happens to cgroups afterwards.
pub struct Frame {
    /// Wall-clock time at which the values were read.
    pub time: SystemTime,
    /// The same moment on the monotonic clock.
    pub read: Instant,
    /// When the frame was complete.
    taken: Instant,
    nodes: Arc<Nodes>,
    /// What each source has read, in the order of the exposition.
    readings: Vec<Box<dyn Reading>>,
    report: Report,
    /// The encoded bodies, by format. Each is made when it is first requested.
    bodies: [Mutex<Option<Body>>; Format::ALL.len()],
    encodings: Arc<Encodings>,
}

impl Frame {
    pub(super) fn new(
        (time, read): (SystemTime, Instant),
        nodes: Arc<Nodes>,
        readings: Vec<Box<dyn Reading>>,
        report: Report,
        encodings: Arc<Encodings>,
    ) -> Self {
        Self {
            time,
            read,
            taken: Instant::now(),
            nodes,
            readings,
            report,
            bodies: Default::default(),
            encodings,
        }
    }

    /// The cgroups of the frame.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// What the agent reports about itself.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Time since the frame was complete.
    pub fn age(&self) -> Duration {
        self.taken.elapsed()
    }

    /// Encodes the families of cgroups.
    pub fn encode_cgroups(&self, out: &mut dyn Encoder) {
        for reading in &self.readings {
            reading.encode(&self.nodes, out);
        }
    }

    /// Encodes every family.
    pub fn encode(&self, out: &mut dyn Encoder) {
        self.encode_cgroups(out);
        self.report.encode(out);
    }

    /// Returns the frame in a format. Each format is encoded once: callers that arrive meanwhile
    /// wait, and share the result.
    pub fn body(&self, format: Format) -> Body {
        let mut body = lock(&self.bodies[format as usize]);
        body.get_or_insert_with(|| {
            let begin = Instant::now();
            let mut encoder = format.encoder();
            self.encode(&mut *encoder);
            let body = encoder.finish();
            self.encodings.count(format, begin.elapsed());
            body
        })
        .clone()
    }

    /// The frame in a format, if it is encoded already. Does not wait for an encoding that is under
    /// way.
    pub(super) fn encoded(&self, format: Format) -> Option<Body> {
        self.bodies[format as usize].try_lock().ok()?.clone()
    }

    /// Frees what was encoded, without waiting for an encoding that is under way. Whether all of it
    /// is free.
    pub(super) fn release_bodies(&self) -> bool {
        let mut all = true;
        for body in &self.bodies {
            match body.try_lock() {
                Ok(mut body) => drop(body.take()),
                Err(_) => all = false,
            }
        }
        all
    }
}

/// How often frames were encoded, and how long the last encoding took.
#[derive(Debug, Default)]
pub struct Encodings {
    counts: [AtomicU64; Format::ALL.len()],
    last_ns: AtomicU64,
}

impl Encodings {
    fn count(&self, format: Format, took: Duration) {
        self.counts[format as usize].fetch_add(1, Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.last_ns.store(ns, Relaxed);
    }

    /// The counts, for the agent's own metrics.
    pub(super) fn report(&self) -> EncodingReport {
        let count = |format: Format| (format, self.counts[format as usize].load(Relaxed));
        let last = self.last_ns.load(Relaxed);
        EncodingReport {
            counts: Format::ALL.map(count),
            last: (last > 0).then(|| Duration::from_nanos(last)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::{
        cgroup::{Filter, Tree, found},
        exposition::{Family, LabelSet, Labels, MetricKind, Unit, Value},
        source::RuntimesReport,
    };

    /// A reading that counts how often it is encoded.
    struct Counting(Arc<AtomicUsize>);

    impl Reading for Counting {
        fn encode(&self, nodes: &Nodes, out: &mut dyn Encoder) {
            self.0.fetch_add(1, Relaxed);
            out.family(&Family {
                name: "a_total",
                help: "A.",
                kind: MetricKind::Counter,
                unit: Unit::None,
                labels: &[],
                origin: "",
                oracle: "",
            });
            let count = nodes.iter().count() as u64;
            out.sample(Labels::new(&LabelSet::empty(), &[]), Value::Count(count));
        }
    }

    fn frame(encoded: &Arc<AtomicUsize>, encodings: &Arc<Encodings>) -> Frame {
        let mut tree = Tree::new(&[found(1, 0, ""), found(2, 1, "a")], Filter::default());
        let report = Report {
            sources: Vec::new(),
            errors: Vec::new(),
            complete: true,
            stats: Some(Default::default()),
            runs: Vec::new(),
            program_runs: Vec::new(),
            cgroups: (2, 0),
            suppressed: 0,
            unequal: None,
            namespaces: None,
            unreported: 0,
            runtimes: RuntimesReport::new(&[], 0),
            slots: (0, 0, 0),
            without_slot: crate::source::WithoutSlot::default(),
            kernel_memory: 0,
            stages: Vec::new(),
            panics: Vec::new(),
            log_lines_lost: 0,
            encodings: encodings.report(),
            registry: Vec::new(),
        };
        Frame::new(
            (SystemTime::now(), Instant::now()),
            tree.nodes(),
            vec![Box::new(Counting(Arc::clone(encoded)))],
            report,
            Arc::clone(encodings),
        )
    }

    #[test]
    fn scrapes_of_one_frame_share_one_encoding_by_format() {
        let (encoded, encodings) = (Arc::default(), Arc::default());
        let frame = frame(&encoded, &encodings);
        let bodies: Vec<Body> = std::thread::scope(|scope| {
            let scrapes: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| frame.body(Format::Text)))
                .collect();
            scrapes.into_iter().map(|s| s.join().unwrap()).collect()
        });
        assert_eq!(encoded.load(Relaxed), 1);
        let shared = |body: &Body| body.is_same(&bodies[0]);
        assert!(bodies.iter().all(shared));
        frame.body(Format::OpenMetrics);
        frame.body(Format::OpenMetrics);
        assert_eq!(encoded.load(Relaxed), 2);
        let counts = encodings.report().counts;
        let counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [(Format::Text, 1), (Format::OpenMetrics, 1)]);
        let text = String::from_utf8(bodies[0].to_vec()).unwrap();
        assert!(text.starts_with("# HELP a_total A.\n# TYPE a_total counter\na_total 2\n"));
        assert!(text.contains("\ncgmeter_encodings_total{format=\"text\"} 0\n"));
    }

    #[test]
    fn a_freed_body_is_encoded_again_on_request() {
        let (encoded, encodings) = (Arc::default(), Arc::default());
        let frame = frame(&encoded, &encodings);
        assert!(frame.encoded(Format::Text).is_none());
        let body = frame.body(Format::Text);
        assert!(frame.encoded(Format::Text).unwrap().is_same(&body));
        assert!(frame.encoded(Format::OpenMetrics).is_none());
        assert!(frame.release_bodies());
        assert!(frame.encoded(Format::Text).is_none());
        assert_eq!(frame.body(Format::Text).to_vec(), body.to_vec());
        assert_eq!(encoded.load(Relaxed), 2);
    }
    #[test]
    fn freeing_does_not_wait_for_an_encoding() {
        let (encoded, encodings) = (Arc::default(), Arc::default());
        let frame = frame(&encoded, &encodings);
        frame.body(Format::OpenMetrics);
        // Held as while the text is encoded.
        let encoding = lock(&frame.bodies[Format::Text as usize]);
        assert!(!frame.release_bodies());
        drop(encoding);
        assert!(frame.release_bodies());
        frame.body(Format::OpenMetrics);
        assert_eq!(encoded.load(Relaxed), 2);
    }
}
