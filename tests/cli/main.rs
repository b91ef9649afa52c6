//! The launcher from outside: the real binary, in a home and a runtime directory of its own.

mod environment;
mod extraction;
mod generated;
mod inspect;
mod json;
mod nested;
mod selftest;
mod signals;
mod status;
mod transparent;
