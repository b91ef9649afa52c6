//! The launcher from outside: the real binary, in a home and a runtime directory of its own.
//!
//! Where known pitfalls of launchers are held down:
//! - preloading is inherited by every process: `transparent::the_shim_is_loaded_and_quiet`,
//!   `transparent::starting_a_process_inside_costs_little`;
//! - a launcher that dies takes nothing with it: `selftest::a_cuda_program_survives_its_launcher`,
//!   `signals::the_program_survives_its_launcher`, `sweep::not_while_its_program_lives`;
//! - inherited descriptors: `transparent::no_descriptor_of_ours_is_inherited`;
//! - LD_PRELOAD splits at blanks and colons: `extraction::homes_that_cannot_serve`;
//! - secure execution: `inspect::privileged_programs`, `reach::sudo_is_run_although_nothing_can_be_preloaded`;
//! - static programs: `inspect::static_programs`,
//!   `libraries::a_static_pie_has_a_dynamic_section_and_no_loader`;
//! - musl: `inspect::foreign_machines_and_libraries`;
//! - counters that tell of more than the link can carry: `a_figure_above_physics_is_none` in `src/link.rs`,
//!   `screen::a_link_busier_than_it_can_be`;
//! - silence: `screen::a_program_that_prints`, `schema::every_field_is_documented`;
//! - world-writable directories: `extraction::into_the_cache_once`, and in `src/job.rs`.

mod control;
mod costs;
mod doctor;
mod environment;
mod extraction;
mod generated;
mod inspect;
mod jobs;
mod json;
mod libraries;
mod nested;
mod probe;
mod reach;
mod schema;
mod screen;
mod selftest;
mod signals;
mod status;
mod sweep;
mod terminal;
mod transparent;
mod tty;
