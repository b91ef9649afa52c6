//! The program that `greenboost selftest` runs under `greenboost run`: an ordinary CUDA program that needs several times
//! the VRAM it may have, and knows what every byte should be.
//!
//! It prints a line for each check. Exit status: 0 all right, 1 a check failed, 3 no usable GPU.

mod block;
mod checks;
pub mod driver;
mod stream;
mod traffic;

use std::io::Write;
use std::time::Instant;

use self::checks::Test;
use self::driver::Driver;
use crate::selftest::{FAILED, NO_GPU};

const PTX: &str = include_str!("../assets/selftest.ptx");

/// Runs all checks, or only looks whether it could.
pub fn main(probe: bool) -> anyhow::Result<u8> {
    let driver = match Driver::open(PTX) {
        Ok(driver) => driver,
        Err(error @ driver::Error::NoGpu(_)) => {
            line(&format!("none  {error}"));
            return Ok(NO_GPU);
        }
        Err(error) => {
            line(&format!("FAIL  start: {error}"));
            return Ok(FAILED);
        }
    };
    if probe {
        return Ok(0);
    }
    let mut test = match Test::new(&driver) {
        Ok(test) => test,
        Err(error) => {
            line(&format!("FAIL  start: {error:#}"));
            return Ok(FAILED);
        }
    };
    type Check<'a> = fn(&mut Test<'a>) -> anyhow::Result<String>;
    let checks: [(&str, Check); 12] = [
        ("device", Test::device),
        ("allocate", Test::allocate),
        ("rows", Test::allocate_rows),
        ("spill", Test::spilled),
        ("pointers", Test::pointers),
        ("fill", Test::fill),
        ("compute", Test::compute),
        ("copy", Test::copy_over_seams),
        ("threads", Test::threads),
        ("out of memory", Test::out_of_memory),
        ("free and reuse", Test::free_and_reuse),
        ("every byte", Test::every_byte),
    ];
    for (name, check) in checks {
        let start = Instant::now();
        match check(&mut test) {
            Ok(detail) => line(&format!(
                "ok    {name}: {detail} ({:.1} s)",
                start.elapsed().as_secs_f64()
            )),
            Err(error) => {
                // What follows builds on it, and would only hide where it began.
                line(&format!("FAIL  {name}: {error:#}"));
                return Ok(FAILED);
            }
        }
    }
    Ok(0)
}

/// One line of the report, out at once: the next call may be the last.
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::PTX;

    /// What the simulated driver reads of it, and what older drivers need.
    #[test]
    fn the_kernels_are_as_the_drivers_expect_them() {
        assert!(PTX.contains("\n.version 7.0\n.target sm_50\n.address_size 64\n"));
        assert!(PTX.is_ascii());
        let mut found = Vec::new();
        for entry in PTX.split(".visible .entry ").skip(1) {
            let (name, rest) = entry.split_once('(').unwrap();
            let (parameters, _) = rest.split_once(')').unwrap();
            let all = parameters.matches(".param").count();
            assert_eq!(parameters.matches(".param .u64 ").count(), all, "{name}");
            found.push((name, all));
        }
        let expected = [
            ("gb_fill", 3),
            ("gb_check", 4),
            ("gb_add", 3),
            ("gb_axpy", 4),
            ("gb_sum", 3),
            ("gb_spin", 1),
            ("gb_deref", 3),
        ];
        assert_eq!(found, expected);
    }
}
