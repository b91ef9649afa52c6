//! `greenboost`: run an unmodified CUDA program with VRAM and host RAM as one GPU memory.
//!
//! This is the launcher. The library that it puts into the program is in `shim/`; what the two say to each other is in
//! `shim/wire`.

mod announce; // control records -> sentences, each said once
mod ask; // `greenboost limit` and `park`: what is asked of a running job
mod asked; // what was asked of our own
mod cli; // the command line: flags, help, and nothing else
mod doctor; // `greenboost doctor`
mod embed; // the libraries inside this executable, as files
mod generate; // completions and man pages
mod inspect; // `greenboost inspect`
mod job; // the job's directory, ledger and control socket
mod jobs; // the running jobs, from outside: `greenboost ps`
mod json; // the record stream of `run --json`
mod launch; // the child: start, signals, end
mod link; // how busy the PCIe links are
mod machine; // how much host memory there is
mod native; // programs that can keep layers on the CPU
mod plan; // flags + machine -> settings
mod probe; // `greenboost probe`
mod reach; // commands that lead out of greenboost's reach
mod run; // `greenboost run`: inspect -> plan -> extract -> launch -> watch -> summary
mod screen; // the program on a pseudo-terminal, and the table below it
mod selftest; // `greenboost selftest`
mod selftest_program; // the CUDA program that it runs
mod size; // 20G, 80%
mod snapshot; // the ledger at one moment
mod spill; // ram, nvme:DIR
mod summary; // what remains to be said at the end
mod table; // the table, as lines
mod target; // the program: where is it, what is it, where does it get CUDA from?
mod top; // `greenboost top`
mod traffic; // what crosses the link, what is moved, who waits
mod voice; // lines on stderr

use std::process::ExitCode;

use cli::Command;
use voice::say;

/// Exit status of our own errors, usage errors among them; as `env`, so that a program's statuses stay its own.
pub const OWN_ERROR: u8 = 125;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Selftest(args) => selftest::selftest(&args),
        Command::Top(args) => top::top(&args),
        Command::Limit(args) => ask::limit(&args),
        Command::Park(args) => ask::park(&args),
        Command::Ps(args) => jobs::ps(&args),
        Command::Probe(args) => probe::probe(&args),
        Command::Completions(args) => generate::completions(args.shell),
        Command::SelftestProgram { probe } => selftest_program::main(probe),
        Command::DoctorProgram => Ok(doctor::program()),
        Command::Generate { dir } => generate::all(&dir),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(OWN_ERROR)
        }
    }
}
