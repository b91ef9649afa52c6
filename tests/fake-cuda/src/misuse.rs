//! Reports: one line per misuse, leak or traced call, appended with a single write.
//!
//! The file is opened for every line: programs close descriptors that they did not open.
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use crate::config::config;

/// Something that would corrupt, fault or hang on a GPU.
pub(crate) fn record(what: std::fmt::Arguments<'_>) {
    if let Some(path) = &config().report {
        append(path, &format!("misuse: {what}\n"));
    }
}

/// Something that the program did not give back.
pub(crate) fn leak(what: std::fmt::Arguments<'_>) {
    if let Some(path) = &config().report {
        append(path, &format!("leak: {what}\n"));
    }
}

pub(crate) fn append(path: &Path, line: &str) {
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}

/// `misuse!("map over a mapping at {va:#x}")`
macro_rules! misuse {
    ($($text:tt)*) => { $crate::misuse::record(format_args!($($text)*)) };
}
pub(crate) use misuse;
