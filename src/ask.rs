//! `greenboost limit` and `greenboost park`: what is asked of a running job, from outside.
//!
//! The ledger takes the wish, and the job's processes act on it and answer there. Nobody is waited for longer than the
//! user says; what was asked for holds all the same.

mod outcome;

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use greenboost_wire::ledger::{Ledger, Placement, Settings, Tier, VramLimit};
use serde_json::json;

use self::outcome::{Budget, Outcome};
use crate::cli::{LimitArgs, ParkArgs};
use crate::job::{self, About};
use crate::jobs::{self, Running};
use crate::machine::Machine;
use crate::selftest::FAILED;
use crate::size::{Amount, human, part_of};
use crate::voice::{self, count, duration};

/// How often is looked whether it is so.
const EVERY: Duration = Duration::from_millis(20);

/// Changes limits, waits, and says what came of it.
pub fn limit(args: &LimitArgs) -> anyhow::Result<u8> {
    let job = jobs::find(&args.job)?;
    let ledger = ledger_of(&job)?;
    let before = ledger.settings();
    let wish = args.vram.map(|amount| match amount {
        Amount::Bytes(bytes) => VramLimit::Bytes(bytes),
        Amount::Share(share) => VramLimit::Share(share),
    });
    let total = Machine::look().total;
    let ram = args.ram.map(|amount| match amount {
        Amount::Bytes(bytes) => bytes.min(total),
        Amount::Share(share) => part_of(total, share),
    });
    ensure!(
        before.spill || ram.is_none(),
        "--ram: the job runs with --spill off, so it has no RAM limit"
    );
    if job::outer().is_some_and(|(dir, _)| dir == job.dir) {
        narrows(ledger, &before, wish, ram)?;
    }

    let budgets = Budget::all(ledger, wish.is_some(), ram.is_some());
    let began = Instant::now();
    let mut change = ledger.changes();
    if let Some(wish) = wish {
        change = ledger.set_vram_limit(wish);
    }
    if let Some(bytes) = ram {
        change = ledger.set_ram_limit(bytes);
    }
    let patience = Duration::from_secs(args.timeout.into());
    let outcome = loop {
        let time = began.elapsed();
        let mut outcome = Outcome::of(ledger, &budgets, change, time);
        // The program may have reached out just now; what it has got by then goes down with the rest.
        if outcome.is_within || outcome.is_final || time >= patience {
            outcome.wish = wish.filter(|_| ledger.devices().next().is_none());
            break outcome;
        }
        ledger.reap();
        std::thread::sleep(EVERY.min(patience - time));
    };
    let has_ended = About::read(&job.dir).is_none();
    if args.json {
        let mut document = outcome.document();
        document["job"] = json!(job.name);
        document["ended"] = json!(has_ended);
        voice::print(&format!("{document}\n"))?;
    } else if has_ended {
        voice::print("the job has ended\n")?;
    } else {
        voice::print(&(outcome.lines().join("\n") + "\n"))?;
    }
    Ok(if outcome.is_within || has_ended {
        0
    } else {
        FAILED
    })
}

/// From inside a job its limits can only be made narrower.
fn narrows(
    ledger: &Ledger,
    before: &Settings,
    wish: Option<VramLimit>,
    ram: Option<u64>,
) -> anyhow::Result<()> {
    const RULE: &str = "from inside a job its limits can only be made narrower";
    if let Some(wish) = wish {
        let mut devices = ledger.devices().peekable();
        if devices.peek().is_none() {
            let is_narrower = match (wish, before.vram_limit) {
                (VramLimit::Bytes(new), VramLimit::Bytes(old)) => new <= old,
                (VramLimit::Share(new), VramLimit::Share(old)) => new <= old,
                (_, outer) => outer == VramLimit::Free,
            };
            ensure!(is_narrower, "--vram: {RULE}");
        }
        for (n, device) in devices {
            let (limit, now) = (wish.of(device.total()), device.vram_limit());
            ensure!(
                limit.is_some_and(|limit| limit <= now),
                "--vram: {RULE}: GPU {n} has {} now",
                human(now)
            );
        }
    }
    ensure!(
        ram.is_none_or(|bytes| bytes <= before.ram_limit),
        "--ram: {RULE}: it is {} now",
        human(before.ram_limit)
    );
    Ok(())
}

/// Sends the job down, waits, and says what came of it.
pub fn park(args: &ParkArgs) -> anyhow::Result<u8> {
    let job = jobs::find(&args.job)?;
    let ledger = ledger_of(&job)?;
    let settings = ledger.settings();
    ensure!(
        settings.placement == Placement::Auto,
        "the job runs with --placement first-fit, so nothing of it moves: it cannot be parked; greenboost limit sets \
         what it may take from now on"
    );
    ensure!(
        settings.spill,
        "the job runs with --spill off, so nothing of it can go to host RAM: it cannot be parked"
    );
    let held = || -> u64 {
        let devices = ledger.devices();
        devices.map(|(n, _)| ledger.used(Tier::Vram, n)).sum()
    };
    let before = held();
    let began = Instant::now();
    let request = ledger.request_park();
    let patience = Duration::from_secs(args.timeout.into());
    let (answers, is_parked) = loop {
        let answers = ledger.holders();
        let is_parked = answers.iter().all(|a| a.parked >= request);
        if is_parked || began.elapsed() >= patience {
            break (answers, is_parked);
        }
        ledger.reap();
        std::thread::sleep(EVERY.min(patience.saturating_sub(began.elapsed())));
    };
    let after = held();
    let time = began.elapsed();
    let has_ended = About::read(&job.dir).is_none();
    let stay = outcome::stays(&answers, Tier::Vram);
    if args.json {
        let document = json!({
            "v": 1,
            "job": job.name,
            "ended": has_ended,
            "parked": is_parked,
            "seconds": (time.as_secs_f64() * 1e3).round() / 1e3,
            "vram_before": before,
            "vram_bytes": after,
            "host_bytes": ledger.used_host(),
            "reasons": stay,
        });
        voice::print(&format!("{document}\n"))?;
        return Ok(if is_parked { 0 } else { FAILED });
    }
    let text = match (has_ended, is_parked) {
        (true, _) => "the job has ended".into(),
        _ if answers.is_empty() => {
            "the job holds no memory of a GPU: there is nothing to park".into()
        }
        (_, true) => format!(
            "parked after {}: {} of {} of VRAM given back; the next use of the GPU wakes it",
            duration(time),
            human(before.saturating_sub(after)),
            human(before)
        ),
        (_, false) => {
            let silent = answers.iter().filter(|a| a.parked < request).count() as u64;
            format!(
                "not parked after {}: {} of VRAM are held; {} not answered, and may still do it",
                duration(time),
                human(after),
                count(silent, "process has", "processes have")
            )
        }
    };
    let mut lines = vec![text];
    if !has_ended && !stay.is_empty() {
        lines.push(format!("what stays: {}", stay.join("; ")));
    }
    voice::print(&(lines.join("\n") + "\n"))?;
    Ok(if is_parked || has_ended { 0 } else { FAILED })
}

fn ledger_of(job: &Running) -> anyhow::Result<&Ledger> {
    match &job.ledger {
        Some(ledger) => Ok(ledger),
        None => bail!(
            "the job {} was started by another version of greenboost: it takes no wishes from this one",
            job.name
        ),
    }
}
