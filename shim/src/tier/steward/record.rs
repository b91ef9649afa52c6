//! The trace that `--trace FILE` asks for: all that the policy hears, as it happens, and what came of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use greenboost_wire::TRACE_ENV;

use super::News;
use crate::process::Job;
use crate::telemetry;
use crate::tier::access::{self, Kind, Said};
use crate::tier::device;
use crate::tier::policy::trace::{Event, Record, Writer};
use crate::tier::policy::{Costs, Move, Op};

/// A file that a trace is written to.
pub struct Recorder {
    writer: Writer<BufWriter<File>>,
    /// When it began, nanoseconds of the monotonic clock.
    begun: u64,
    /// Functions by handle, numbered.
    functions: HashMap<u64, u64>,
    /// Operations of this look, by time.
    said: Vec<(u64, Event)>,
    /// Nothing more is written: the file could not take it.
    failed: bool,
}

/// Where this process writes its trace: the first takes the file itself, others add their number.
fn file() -> Option<File> {
    let path = PathBuf::from(std::env::var_os(TRACE_ENV).filter(|p| !p.is_empty())?);
    let own = || {
        let mut name = path.clone().into_os_string();
        name.push(format!(".{}", std::process::id()));
        File::create_new(PathBuf::from(name))
    };
    File::create_new(&path).or_else(|_| own()).ok()
}

impl Recorder {
    /// Begins a trace, if one is asked for; operations are noted with their times from then on.
    pub fn begin(job: &Job) -> Option<Recorder> {
        let writer = Writer::new(BufWriter::new(file()?)).ok()?;
        access::say_when();
        let mut recorder = Recorder {
            writer,
            begun: telemetry::monotonic(),
            functions: HashMap::new(),
            said: Vec::new(),
            failed: false,
        };
        let ledger = job.place.ledger();
        for device in device::all() {
            recorder.now(Event::Begun {
                vram: ledger.device(device.index).vram_limit(),
                host: ledger.settings().ram_limit,
                costs: Costs::H100,
            });
        }
        Some(recorder)
    }

    fn put(&mut self, when: u64, event: Event) {
        let at = when.saturating_sub(self.begun);
        self.failed |= self.failed || self.writer.record(&Record { at, event }).is_err();
    }

    fn now(&mut self, event: Event) {
        self.put(telemetry::monotonic(), event);
    }

    /// Something that the policy hears.
    pub fn news(&mut self, news: &News) {
        let event = match news {
            News::Made(_, base, bytes, chunks, movable) => Event::Allocated {
                base: *base,
                bytes: *bytes,
                movable: *movable,
                chunks: chunks.clone(),
            },
            News::Gone(_, base) => Event::Freed { base: *base },
            News::Fixed(_, base) => Event::Fixed { base: *base },
        };
        self.now(event);
    }

    /// What an operation of a thread named.
    pub fn said(&mut self, thread: usize, said: &Said) {
        let number = self.functions.len() as u64 + 1;
        let function = match said.kind {
            Kind::Launch => *self.functions.entry(said.who).or_insert(number),
            Kind::Copy | Kind::Graph => 0,
        };
        if function == number
            && let Some(name) = access::name_of(said.who)
        {
            self.said
                .push((said.when, Event::Function { id: number, name }));
        }
        let mut named = |op, addresses| {
            let event = Event::Named {
                op,
                thread: thread as u64 + 1,
                function,
                addresses,
            };
            self.said.push((said.when, event));
        };
        match said.kind {
            Kind::Launch => named(Op::Launch, said.words.to_vec()),
            Kind::Graph => named(Op::Graph, said.words.to_vec()),
            Kind::Copy => {
                for pair in said.words.chunks_exact(2) {
                    named(Op::Copy { bytes: pair[1] }, vec![pair[0]]);
                }
            }
        }
    }

    /// All that was said at this look has been heard.
    pub fn looked(&mut self) {
        let mut said = std::mem::take(&mut self.said);
        said.sort_by_key(|(when, _)| *when);
        for (when, event) in said {
            self.put(when, event);
        }
        self.failed |= self.writer.flush().is_err();
    }

    /// The program has synchronised.
    pub fn waited(&mut self) {
        self.now(Event::Waited);
    }

    /// An attempt to find the device drained, and the moves that were made.
    pub fn attempt(&mut self, drained: bool, took: u64, done: &[Move]) {
        self.now(Event::Drained { drained, took });
        for m in done {
            self.now(Event::Moved {
                base: m.base,
                chunk: m.chunk as u64,
                to: m.to,
            });
        }
    }
}
