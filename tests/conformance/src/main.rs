//! `conformance [--list] [NAME...]`: runs the checks on whichever driver is `libcuda.so.1` here.

use std::process::ExitCode;

fn main() -> ExitCode {
    conformance::main()
}
