//! The trace format: what is written is read, what is cut off or broken does no harm.

use std::io::ErrorKind;

use greenboost_shim::tier::policy::trace::{Event, LONGEST, MAGIC, Reader, Record, Writer};
use greenboost_shim::tier::policy::{Costs, Op};
use greenboost_wire::ledger::Tier;
use proptest::prelude::*;

fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![Just(Tier::Vram), Just(Tier::Host)]
}

/// Few addresses, so that they come again, and any.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0x3_0000_0000u64..0x3_0000_0010, any::<u64>()]
}

fn event() -> impl Strategy<Value = Event> {
    let cost = || -1e15..1e15f64;
    let op = prop_oneof![
        Just(Op::Launch),
        Just(Op::Graph),
        any::<u64>().prop_map(|bytes| Op::Copy { bytes }),
        any::<u64>().prop_map(|bytes| Op::Memset { bytes }),
    ];
    let chunk = prop_oneof![(1u64..40).prop_map(|n| n << 21), 0..u64::MAX / 2];
    let chunks = prop::collection::vec((chunk, tier()), 0..20);
    prop_oneof![
        (
            any::<u64>(),
            any::<u64>(),
            cost(),
            cost(),
            cost(),
            cost(),
            cost()
        )
            .prop_map(|(vram, host, a, b, c, d, e)| Event::Begun {
                vram,
                host,
                costs: Costs {
                    link: a,
                    vram: b,
                    move_per_byte: c,
                    move_each: d,
                    drain: e
                }
            }),
        (address(), any::<u64>(), any::<bool>(), chunks).prop_map(
            |(base, bytes, movable, chunks)| Event::Allocated {
                base,
                bytes,
                movable,
                chunks
            }
        ),
        address().prop_map(|base| Event::Freed { base }),
        address().prop_map(|base| Event::Fixed { base }),
        (address(), any::<u64>(), tier()).prop_map(|(base, chunk, to)| Event::Moved {
            base,
            chunk,
            to
        }),
        (
            op,
            any::<u64>(),
            any::<u64>(),
            prop::collection::vec(address(), 0..20)
        )
            .prop_map(|(op, thread, function, addresses)| Event::Named {
                op,
                thread,
                function,
                addresses
            }),
        (any::<u64>(), ".{0,40}").prop_map(|(id, name)| Event::Function { id, name }),
        Just(Event::Waited),
        (any::<bool>(), any::<u64>()).prop_map(|(drained, took)| Event::Drained { drained, took }),
    ]
}

fn trace() -> impl Strategy<Value = Vec<Record>> {
    prop::collection::vec((0..1u64 << 40, event()), 0..60).prop_map(|events| {
        let mut now = 0;
        let at = |(later, event)| {
            now += later;
            Record { at: now, event }
        };
        events.into_iter().map(at).collect()
    })
}

fn written(trace: &[Record]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    trace.iter().for_each(|r| writer.record(r).unwrap());
    writer.into_inner()
}

/// What can be read, whether it was cut off, and whether it was broken.
fn read(bytes: &[u8]) -> (Vec<Record>, bool, bool) {
    let mut reader = Reader::new(bytes).unwrap();
    let mut trace = Vec::new();
    loop {
        match reader.record() {
            Ok(Some(record)) => trace.push(record),
            Ok(None) => return (trace, reader.truncated(), false),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::InvalidData);
                return (trace, false, true);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(trace in trace()) {
        prop_assert_eq!(read(&written(&trace)), (trace, false, false));
    }

    #[test]
    fn what_is_cut_off_is_read_as_far_as_it_goes(trace in trace(), at in 0.0..1.0) {
        let whole = written(&trace);
        let kept = MAGIC.len() + ((whole.len() - MAGIC.len()) as f64 * at) as usize;
        let (read, truncated, broken) = read(&whole[..kept]);
        prop_assert!(!broken);
        prop_assert_eq!(&read[..], &trace[..read.len()]);
        // The whole records that fit are there, and only then nothing was cut off.
        prop_assert_eq!(written(&read).len() < kept, truncated);
    }

    #[test]
    fn what_is_broken_does_no_harm(
        trace in trace(),
        wounds in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
    ) {
        let mut bytes = written(&trace);
        for (at, byte) in wounds {
            let range = bytes.len() - MAGIC.len();
            if range > 0 {
                bytes[MAGIC.len() + at.index(range)] = byte;
            }
        }
        read(&bytes);
    }
}

#[test]
fn unknown_records_and_fields_are_skipped() {
    let first = Record {
        at: 5,
        event: Event::Waited,
    };
    let mut bytes = written(std::slice::from_ref(&first));
    // A kind of the future, one that is too long, and a known kind with a field more.
    bytes.extend([200, 1, 3, 1, 2, 3]);
    bytes.push(6);
    let longest = LONGEST + 1;
    bytes.extend([
        longest as u8 | 0x80,
        (longest >> 7) as u8 | 0x80,
        (longest >> 14) as u8,
    ]);
    bytes.extend(vec![0; longest as usize]);
    bytes.extend([8, 3, 2, 4, 77]);
    let second = Record {
        at: 7,
        event: Event::Waited,
    };
    assert_eq!(read(&bytes), (vec![first, second], false, false));
}

#[test]
fn what_is_no_trace_is_refused() {
    for bytes in [&b"GBT"[..], b"GBTRACX\x01", b"GBTRACE\x02", b""] {
        let refused = Reader::new(bytes).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidData, "{bytes:?}");
    }
}

/// One launch of four known addresses is a dozen bytes.
#[test]
fn records_are_small() {
    let launch = |at| Record {
        at,
        event: Event::Named {
            op: Op::Launch,
            thread: 1,
            function: 40,
            addresses: vec![0x3_0200_0000, 0x4_0200_0000, 0x5_0200_0000, 0x6_0200_0000],
        },
    };
    let one = written(&[launch(0)]).len();
    assert!(written(&[launch(0), launch(9_000)]).len() - one <= 12);
}
