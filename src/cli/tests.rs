//! The table and its values.

use super::*;

fn run(line: &[&str]) -> RunArgs {
    let line = ["greenboost", "run"].iter().chain(line);
    match Cli::try_parse_from(line).unwrap().command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn clap_finds_no_contradiction() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn everything_after_the_program_is_the_programs() {
    for line in [
        &[
            "--vram-limit",
            "2G",
            "prog",
            "-v",
            "--ram-limit",
            "x",
            "--",
            "--help",
        ][..],
        &[
            "--vram-limit=2G",
            "--",
            "prog",
            "-v",
            "--ram-limit",
            "x",
            "--",
            "--help",
        ],
    ] {
        let args = run(line);
        assert_eq!(args.vram_limit, Some(Amount::Bytes(2 << 30)));
        assert!(!args.verbose && args.ram_limit.is_none());
        assert_eq!(
            args.command,
            ["prog", "-v", "--ram-limit", "x", "--", "--help"]
        );
    }
}

#[test]
fn unknown_flags_before_the_program_are_errors() {
    let line = ["greenboost", "run", "--vram-limt", "2G", "prog"];
    let error = Cli::try_parse_from(line).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownArgument);
    let error = Cli::try_parse_from(["greenboost", "run"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingRequiredArgument);
}

#[test]
fn places_for_json() {
    let parse = |t: &str| parse_json(t.into());
    assert_eq!(parse("fd:3"), Ok(JsonTarget::Fd(3)));
    assert_eq!(parse("fd.json"), Ok(JsonTarget::File("fd.json".into())));
    for bad in [
        "",
        "-",
        "fd:",
        "fd:0",
        "fd:1",
        "fd:-1",
        "fd:x",
        "fd:99999999999",
    ] {
        assert!(
            parse(bad).unwrap_err().contains("write a file name"),
            "{bad}"
        );
    }
}
