//! The table below a program, on a terminal.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::environment::{GREENBOOST, TestEnv, expect, stderr};
use crate::tty::{Tty, acting, actor, simulated};

/// Lines of the table, with the time that they show taken out.
fn table(tty: &Tty) -> Vec<String> {
    let lines = tty.lines();
    let start = lines.iter().rposition(|l| l.starts_with("greenboost "));
    let mut table = lines[start.unwrap_or(lines.len())..].to_vec();
    if let Some(head) = table.first_mut() {
        let time = head.split_whitespace().nth(1).unwrap().to_string();
        assert!(time.contains(':') && time.len() == 4, "{head}");
        *head = head.replacen(&time, "T:TT", 1);
    }
    table
}

/// The tables of a job that holds 64 MiB of VRAM and 48 MiB of host memory.
fn expected(columns: u16) -> [&'static str; 4] {
    match columns {
        60 => [
            "greenboost T:TT                used allocs PCIe in out GB/s",
            "GPU 0 VRAM ██████  64.0 of 64.0 MiB      2",
            "GPU 0 RAM  █▏░░░░ 48.0 of 256.0 MiB      1    51.2      0.1",
            "48.0 MiB spilled; link busy 81 %",
        ],
        80 => [
            "greenboost  T:TT                         used         allocs  PCIe in  out GB/s",
            "GPU 0 VRAM  ██████████████   64.0 of 64.0 MiB  100 %       2",
            "GPU 0 RAM   ██▋░░░░░░░░░░░  48.0 of 256.0 MiB   18 %       1     51.2       0.1",
            "48.0 MiB spilled; link busy 81 %; reading it once takes 1 ms at best",
        ],
        _ => [
            "greenboost  T:TT                                                   used         allocs  PCIe in  out GB/s",
            "GPU 0 VRAM  ████████████████████████████████████████   64.0 of 64.0 MiB  100 %       2",
            "GPU 0 RAM   ███████▌░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░  48.0 of 256.0 MiB   18 %       1     51.2       0.1",
            "48.0 MiB spilled; link busy 81 %; reading it once takes 1 ms at best",
        ],
    }
}

fn is_settled(tty: &Tty) -> bool {
    table(tty).last().is_some_and(|l| l.contains("link busy"))
        && table(tty).iter().any(|l| l.contains("48.0 of"))
}

const SPILLING: [&str; 4] = ["cuda", "alloc:32", "alloc:32", "alloc:48"];

#[test]
fn a_program_that_prints() {
    let env = TestEnv::new();
    let actor = actor(&env);
    for columns in [60, 80, 200] {
        let go = env.file(&format!("go{columns}"));
        let until = format!("until:{}", go.display());
        let words = [&SPILLING[..], &["lines:50", &until, "say:the end"]].concat();
        let mut tty = Tty::start(&mut acting(&env, &actor, &[], &words), 24, columns);
        tty.wait_until("the table is there", is_settled);
        let lines = tty.lines();
        assert_eq!(lines[20..].len(), 4);
        assert_eq!(table(&tty), expected(columns), "{columns}:\n{}", tty.text());
        // What was printed last is above, whole and in order; its cursor is on the next line.
        let printed: Vec<&str> = lines[..20]
            .iter()
            .map(String::as_str)
            .filter(|l| l.starts_with("line "))
            .collect();
        let wanted: Vec<String> = (51 - printed.len()..=50)
            .map(|n| format!("line {n}"))
            .collect();
        assert!(printed.len() > 10, "{lines:#?}");
        assert_eq!(printed, wanted);
        let ((row, column), is_shown, _) = tty.cursor();
        assert!(row < 20 && column == 0 && is_shown, "{row} {column}");
        assert!(!lines[usize::from(row) - 1].is_empty());
        fs::write(&go, "").unwrap();
        assert_eq!(tty.end().code(), Some(0));
        let text = tty.text();
        assert!(text.contains("the end\ngreenboost: "), "{text}");
        assert!(!text.contains("allocs"), "the table is gone:\n{text}");
        assert!(text.contains("ended with status 0"), "{text}");
    }
}

#[test]
fn a_progress_bar_is_drawn_over_itself() {
    let env = TestEnv::new();
    let actor = actor(&env);
    for columns in [60, 80, 200] {
        // The spill is told while the bar is drawn.
        let bar = [
            "cuda",
            "say:before",
            "alloc:32",
            "bar:20",
            "alloc:32",
            "alloc:48",
            "bar:40",
        ];
        let words = [&bar[..], &["until:go", "say:", "say:after"]].concat();
        let _ = fs::remove_file(env.file("go"));
        let mut tty = Tty::start(&mut acting(&env, &actor, &[], &words), 24, columns);
        tty.wait_until("the bar is full and the spill told", |tty| {
            is_settled(tty)
                && tty.text().contains("100% |####################|")
                && tty.text().contains("first spill")
        });
        let text = tty.text();
        assert_eq!(
            text.matches("% |").count(),
            1,
            "one bar, not its steps:\n{text}"
        );
        assert!(
            text.find("first spill").unwrap() < text.find("100%").unwrap(),
            "what is said is above the bar:\n{text}"
        );
        assert_eq!(table(&tty), expected(columns));
        fs::write(env.file("go"), "").unwrap();
        assert_eq!(tty.end().code(), Some(0));
        let text = tty.text();
        assert!(
            text.contains("100% |####################|\nafter\n"),
            "{text}"
        );
    }
}

#[test]
fn a_prompt_and_its_answer() {
    let env = TestEnv::new();
    let actor = actor(&env);
    for columns in [60, 80, 200] {
        let words = [&SPILLING[..], &["ask", "wait:400", "ask"]].concat();
        let mut tty = Tty::start(&mut acting(&env, &actor, &[], &words), 24, columns);
        tty.wait_until("the prompt and the table", |tty| {
            is_settled(tty) && tty.text().contains('>')
        });
        tty.press("hel");
        tty.wait_for("> hel");
        let ((row, column), ..) = tty.cursor();
        assert_eq!(column, 5, "the cursor is where the user types");
        assert_eq!(tty.lines()[usize::from(row)], "> hel");
        std::thread::sleep(Duration::from_millis(600));
        assert_eq!(tty.cursor().0, (row, column), "drawing does not move it");
        tty.press("\x7f\x7flp\n");
        tty.wait_for("you said hlp");
        assert_eq!(table(&tty), expected(columns));
        tty.wait_until("it asks again", |tty| tty.text().matches('>').count() == 2);
        tty.press("again\n");
        assert_eq!(tty.end().code(), Some(0));
        let text = tty.text();
        assert!(
            text.contains("> hlp\nyou said hlp\n> again\nyou said again\n"),
            "{text}"
        );
    }
}

#[test]
fn the_alternate_screen_is_the_programs_alone() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let words = [
        &SPILLING[..],
        &[
            "wait:500",
            "size",
            "alternate",
            "wait:300",
            "size",
            "until:go",
        ],
    ]
    .concat();
    let mut tty = Tty::start(&mut acting(&env, &actor, &[], &words), 24, 80);
    tty.wait_for("full screen 24x80");
    std::thread::sleep(Duration::from_millis(600));
    let lines = tty.lines();
    assert_eq!(lines[23], "last row");
    assert!(!tty.text().contains("allocs"), "no table:\n{}", tty.text());
    tty.press("q");
    tty.wait_until("the table is back", |tty| {
        is_settled(tty) && tty.text().matches("size 20x80").count() == 2
    });
    assert_eq!(table(&tty), expected(80));
    assert!(!tty.cursor().2);
    fs::write(env.file("go"), "").unwrap();
    assert_eq!(tty.end().code(), Some(0));
}

#[test]
fn a_crash_leaves_the_terminal_usable() {
    let env = TestEnv::new();
    let actor = actor(&env);
    for last in ["crash", "until:never"] {
        let words = [
            &SPILLING[..],
            &[
                "say:in the middle of a line",
                "left",
                "hide",
                "wait:500",
                last,
            ],
        ]
        .concat();
        let mut tty = Tty::start(
            &mut acting(&env, &actor, &["--json", "records"], &words),
            24,
            80,
        );
        let before = tty.settings();
        tty.wait_for("full screen 24x80");
        assert_ne!(tty.settings(), before, "keys are passed on as they are");
        if last != "crash" {
            let start = fs::read_to_string(env.file("records")).unwrap();
            let pid = crate::json::records(start.lines().next().unwrap())[0]["pid"].as_i64();
            kill(Pid::from_raw(pid.unwrap() as i32), Signal::SIGKILL).unwrap();
        }
        let status = if last == "crash" { 139 } else { 137 };
        assert_eq!(tty.end().code(), Some(status));
        assert_eq!(tty.settings(), before);
        let (_, is_shown, is_alternate) = tty.cursor();
        assert!(is_shown && !is_alternate);
        let text = tty.text();
        assert!(text.contains("in the middle of a line\n"), "{text}");
        assert!(text.contains("was ended by SIG"), "{text}");
        assert!(!text.contains("allocs"), "{text}");
        assert!(tty.sent().contains("\x1b[m"));
    }
}

#[test]
fn a_new_size_reaches_the_program() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let words = [
        &SPILLING[..],
        &[
            "say:here",
            "until:one",
            "size",
            "until:two",
            "size",
            "until:three",
        ],
    ]
    .concat();
    let mut tty = Tty::start(&mut acting(&env, &actor, &[], &words), 24, 80);
    tty.wait_until("the table is there", is_settled);
    tty.resize(30, 60);
    tty.wait_until("the table is at the new bottom", |tty| {
        is_settled(tty) && tty.lines()[29].contains("spilled")
    });
    assert_eq!(table(&tty), expected(60));
    fs::write(env.file("one"), "").unwrap();
    tty.wait_for("size 26x60\npixels 416x480");
    // Too small for a table: the program has it all.
    tty.resize(7, 60);
    std::thread::sleep(Duration::from_millis(500));
    fs::write(env.file("two"), "").unwrap();
    tty.wait_for("size 7x60");
    tty.resize(24, 80);
    tty.wait_until("the table is back", is_settled);
    fs::write(env.file("three"), "").unwrap();
    assert_eq!(tty.end().code(), Some(0));
}

#[test]
fn keys_are_signals_and_raw_keys_are_not() {
    let env = TestEnv::new();
    let actor = actor(&env);
    // In raw mode Ctrl-C is a key like others; otherwise it ends the program.
    let words = [&SPILLING[..], &["raw", "say:waiting", "until:never"]].concat();
    let mut tty = Tty::start(&mut acting(&env, &actor, &[], &words), 24, 80);
    let before = tty.settings();
    tty.wait_for("press");
    tty.press("\x03");
    tty.wait_for("key 3");
    tty.wait_for("waiting");
    tty.press("\x03");
    assert_eq!(tty.end().code(), Some(130));
    assert_eq!(tty.settings(), before);
    assert!(tty.text().contains("was ended by SIGINT"), "{}", tty.text());
}

#[test]
fn a_saved_cursor_is_not_overwritten() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let words = [&SPILLING[..], &["wait:500", "save", "until:go"]].concat();
    let mut tty = Tty::start(&mut acting(&env, &actor, &[], &words), 24, 80);
    tty.wait_for("start END more");
    fs::write(env.file("go"), "").unwrap();
    assert_eq!(tty.end().code(), Some(0));
}

/// Whether a process that runs this file is stopped. One that is not continued yet loses the next Ctrl-Z with that.
fn is_stopped(file: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut of = processes.filter(|p| fs::read_link(p.path().join("exe")).is_ok_and(|e| e == file));
    of.any(|p| fs::read_to_string(p.path().join("stat")).is_ok_and(|s| s.contains(") T ")))
}

/// An interactive shell on a terminal, as a user has it.
fn shell(env: &TestEnv) -> Tty {
    let mut command = env.program("setsid");
    command.args(["-c", "-w", "bash", "--norc", "--noprofile", "-i"]);
    command.env("PS1", "$ ").env("HISTFILE", "/dev/null");
    simulated(env, &mut command);
    let tty = Tty::start(&mut command, 24, 80);
    tty.wait_for("$");
    tty
}

fn run(words: &str) -> String {
    format!("{GREENBOOST} run --vram-limit 64M --ram-limit 256M -- ./actor {words}")
}

#[test]
fn stopped_and_continued_by_the_shell() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let mut tty = shell(&env);
    tty.press("clear\n");
    tty.press(&format!(
        "{}\n",
        run("cuda alloc:32 alloc:32 alloc:48 ask until:go ask")
    ));
    tty.wait_until("the table is there", is_settled);
    for n in 1..3 {
        tty.press("\x1a");
        tty.wait_until("stopped", |tty| tty.sent().matches("Stopped").count() == n);
        assert!(is_stopped(&actor));
        assert!(
            !tty.text().contains("allocs"),
            "no table in the shell:\n{}",
            tty.text()
        );
        tty.press("echo typed''here\n");
        tty.wait_until("the shell has its keys", |tty| {
            tty.text().matches("typedhere").count() == n
        });
        tty.press("fg\n");
        tty.wait_until("the table is back", |tty| {
            is_settled(tty) && !is_stopped(&actor)
        });
    }
    tty.press("word\n");
    tty.wait_for("you said word");
    // In the background nothing is drawn, and the keys are the shell's.
    tty.press("\x1a");
    tty.wait_until("stopped", |tty| tty.sent().matches("Stopped").count() == 3);
    tty.press("bg\n");
    tty.press("echo in''between; touch go\n");
    tty.wait_for("inbetween");
    // It asks for input there, and is stopped for that.
    tty.wait_until("it waits for the foreground", |tty| {
        tty.press_again("\n");
        tty.sent().matches("Stopped").count() == 4
    });
    assert!(!tty.text().contains("allocs"), "{}", tty.text());
    tty.press("fg\n");
    tty.wait_until("the table is back", is_settled);
    tty.press("last\n");
    tty.wait_for("you said last");
    tty.press("echo status''=$?\n");
    tty.wait_for("status=0");
    tty.press("exit\n");
    tty.end();
}

#[test]
fn nobody_there_to_continue_it() {
    // The leader of a session has no shell above it: Ctrl-Z does nothing there, with us as without.
    let env = TestEnv::new();
    let actor = actor(&env);
    let words = [&SPILLING[..], &["ask"]].concat();
    let mut tty = Tty::start(&mut acting(&env, &actor, &[], &words), 24, 80);
    tty.wait_until("the table is there", is_settled);
    tty.press("\x1a");
    std::thread::sleep(Duration::from_millis(300));
    tty.press("on\n");
    tty.wait_for("you said on");
    assert_eq!(tty.end().code(), Some(0));
}

#[test]
fn a_dead_launcher_is_a_closed_terminal() {
    let env = TestEnv::new();
    actor(&env);
    let mut tty = shell(&env);
    tty.press("clear; stty -a >before\n");
    tty.press(&format!(
        "{}; echo status''=$?\n",
        run("cuda alloc:32 alloc:32 alloc:48 hup until:never")
    ));
    tty.wait_until("the table is there", is_settled);
    kill(launcher(&env), Signal::SIGKILL).unwrap();
    tty.wait_for("status=137");
    let until = Instant::now() + Duration::from_secs(10);
    while !env.file("hung-up").exists() {
        assert!(Instant::now() < until, "the program was not hung up on");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The terminal is as it was, for the shell and for what it starts.
    tty.press("stty -a >after; cmp before after && echo sa''me\n");
    tty.wait_for("same");
    tty.press("exit\n");
    tty.end();
}

/// Where no shell puts the terminal back either: a script goes on after the launcher was killed.
#[test]
fn a_dead_launcher_leaves_the_terminal_as_it_was() {
    let env = TestEnv::new();
    actor(&env);
    let script = format!(
        "{}; until stty -a | grep -q ' echo '; do sleep 0.05; done; tput cols; read -r word; echo got $word",
        run("cuda alloc:32 alloc:32 alloc:48 until:never")
    );
    let mut command = env.program("setsid");
    command.args(["-c", "-w", "sh", "-c", &script]);
    simulated(&env, &mut command);
    let mut tty = Tty::start(&mut command, 24, 80);
    let before = tty.settings();
    tty.wait_until("the table is there", is_settled);
    kill(launcher(&env), Signal::SIGKILL).unwrap();
    tty.wait_until("the script goes on", |tty| {
        tty.lines().iter().any(|l| l == "80")
    });
    assert_eq!(tty.settings(), before);
    assert!(
        !tty.text().contains("allocs"),
        "no table is left:\n{}",
        tty.text()
    );
    tty.press("word\n");
    assert_eq!(tty.end().code(), Some(0));
    assert!(tty.text().contains("word\ngot word"), "{}", tty.text());
}

/// The same while the program has its alternate screen, with all that belongs to one.
#[test]
fn a_dead_launcher_leaves_the_screen_usable() {
    let env = TestEnv::new();
    actor(&env);
    let words = "cuda alloc:32 alloc:32 alloc:48 say:before wait:600 mouse hide left until:never";
    let script = format!(
        "{}; until stty -a | grep -q ' echo '; do sleep 0.05; done; seq 30; read -r word; echo got $word",
        run(words)
    );
    let mut command = env.program("setsid");
    command.args(["-c", "-w", "sh", "-c", &script]);
    simulated(&env, &mut command);
    let mut tty = Tty::start(&mut command, 24, 80);
    let before = tty.settings();
    tty.wait_for("full screen 24x80");
    assert!(tty.is_modal());
    kill(launcher(&env), Signal::SIGKILL).unwrap();
    tty.wait_until("the script goes on", |tty| {
        tty.lines().iter().any(|l| l == "30")
    });
    assert_eq!(tty.settings(), before);
    let (_, is_shown, is_alternate) = tty.cursor();
    assert!(is_shown && !is_alternate && !tty.is_modal());
    let lines = tty.lines();
    assert_eq!(lines[22], "30", "it scrolls as a whole:\n{}", tty.text());
    assert!(!tty.text().contains("allocs"), "{}", tty.text());
    tty.press("word\n");
    assert_eq!(tty.end().code(), Some(0));

    // A shell that is at its prompt before anybody: what it set for reading stays.
    let mut tty = shell(&env);
    tty.press(&format!("clear; {}\n", run(words)));
    tty.wait_for("full screen 24x80");
    kill(launcher(&env), Signal::SIGKILL).unwrap();
    tty.wait_until("the main screen is back", |tty| !tty.cursor().2);
    tty.press("echo he''re\n");
    tty.wait_for("here");
    assert!(tty.cursor().1 && !tty.cursor().2);
    tty.press("exit\n");
    tty.end();
}

/// A stopped job's terminal is the shell's. Nobody writes to it when the launcher is killed then.
#[test]
fn a_launcher_that_dies_stopped() {
    let env = TestEnv::new();
    actor(&env);
    let mut tty = shell(&env);
    tty.press(&format!(
        "clear; {}\n",
        run("cuda alloc:32 alloc:32 alloc:48 hide until:never")
    ));
    tty.wait_until("the table is there", is_settled);
    let launcher = launcher(&env);
    tty.press("\x1a");
    tty.wait_for("Stopped");
    tty.press("echo sh''ell\n");
    tty.wait_for("shell");
    kill(launcher, Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    // With that it would have begun.
    assert!(!tty.sent().contains('\x18'), "{:?}", tty.sent());
    tty.press("exit\nexit\n");
    tty.end();
}

/// What a program sets and leaves so is so afterwards, as it is without the table; what one leaves that was killed is not.
#[test]
fn settings_of_the_terminal() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let mut after = Vec::new();
    for (stats, end) in [
        ("table", "exit 3"),
        ("off", "exit 3"),
        ("table", "kill -9 $$"),
    ] {
        let inner = format!(
            "{} cuda alloc:32 alloc:32 alloc:48 say:here until:go; stty -echo -ixon intr ^G; {end}",
            actor.display()
        );
        let script = format!(
            "{GREENBOOST} run --vram-limit 64M --ram-limit 256M --stats {stats} -- sh -c '{inner}'"
        );
        let mut command = env.program("setsid");
        command.args(["-c", "-w", "sh", "-c", &script]);
        simulated(&env, &mut command);
        let mut tty = Tty::start(&mut command, 24, 80);
        let before = tty.settings();
        tty.wait_for("here");
        if stats == "table" {
            tty.wait_until("the table is there", is_settled);
        }
        fs::write(env.file("go"), "").unwrap();
        let status = tty.end().code();
        assert_eq!(status, Some(if end == "exit 3" { 3 } else { 137 }));
        fs::remove_file(env.file("go")).unwrap();
        let settings = tty.settings();
        assert_eq!(settings == before, status == Some(137), "{stats}, {end}");
        after.push(settings);
    }
    assert_eq!(after[0], after[1], "as without the table");
}

#[test]
fn a_program_that_cannot_be_started() {
    let env = TestEnv::new();
    let torn = env.executable("torn", b"#!/no/such/interpreter\n");
    let format = env.executable("format", b"\x7fELF, or so it says");
    for (program, status) in [(torn, 127), (format, 126)] {
        let mut command = env.program("setsid");
        command.args(["-c", "-w", GREENBOOST, "run"]).arg(&program);
        simulated(&env, &mut command);
        let mut tty = Tty::start(&mut command, 24, 80);
        let before = tty.settings();
        assert_eq!(tty.end().code(), Some(status), "{}", tty.text());
        assert_eq!(tty.settings(), before);
        assert!(tty.text().contains("greenboost: "), "{}", tty.text());
    }
}

/// The one launcher that runs here.
fn launcher(env: &TestEnv) -> Pid {
    let output = expect(&mut env.greenboost(["ps", "--json"]), 0);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["jobs"].as_array().unwrap().len(), 1, "{list}");
    Pid::from_raw(list["jobs"][0]["launcher"].as_i64().unwrap() as i32)
}

#[test]
fn without_the_table_a_dead_launcher_changes_nothing() {
    let env = TestEnv::new();
    let actor = actor(&env);
    for stats in ["lines", "off"] {
        let words = [
            "cuda",
            "alloc:96",
            "tty",
            "say:begun",
            "hup",
            "until:go",
            "say:unharmed",
            "tell:over",
        ];
        let mut tty = shell(&env);
        tty.press("clear; tty; echo\n");
        let options = format!("--vram-limit 64M --ram-limit 256M --stats {stats}");
        tty.press(&format!(
            "{GREENBOOST} run {options} -- {} {}\n",
            actor.display(),
            words.join(" ")
        ));
        tty.wait_until("it has begun", |tty| {
            tty.lines().iter().any(|l| l == "begun")
        });
        let text = tty.text();
        let own = text.lines().find(|l| l.starts_with("/dev/")).unwrap();
        assert!(
            text.contains(&format!("tty {own} session shared")),
            "the terminal itself:\n{text}"
        );
        kill(launcher(&env), Signal::SIGKILL).unwrap();
        tty.wait_for("Killed");
        tty.press("touch go\n");
        tty.wait_until("it goes on", |tty| tty.sent().contains("unharmed\r\n"));
        tty.wait_until("it went on to its end", |_| env.file("over").exists());
        assert!(!env.file("hung-up").exists());
        for name in ["go", "over"] {
            fs::remove_file(env.file(name)).unwrap();
        }
        tty.press("exit\n");
        tty.end();
    }
}

#[test]
fn other_descriptors_are_inherited_as_they_are() {
    let env = TestEnv::new();
    let actor = actor(&env);
    fs::write(env.file("in"), "word\n").unwrap();
    // Where each of the program's descriptors leads, and which of them are terminals.
    let script = format!(
        "exec {GREENBOOST} run --vram-limit 64M --ram-limit 256M -- sh -c '{} cuda alloc:48 alloc:48 ask; \
         readlink /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/3; test -t 2 && tty <&2; \
         until test -e go; do sleep 0.05; done' <in >out 3<in",
        actor.display()
    );
    let mut command = env.program("setsid");
    command.args(["-c", "-w", "sh", "-c", &script]);
    simulated(&env, &mut command);
    let mut tty = Tty::start(&mut command, 24, 80);
    tty.wait_until("the table is there", |tty| {
        tty.text().contains("GPU 0 VRAM")
    });
    let out = || fs::read_to_string(env.file("out")).unwrap();
    tty.wait_until("it has written", |_| out().contains("/dev/pts/"));
    let (input, output) = (env.file("in"), env.file("out"));
    let (input, output) = (input.display(), output.display());
    let said = out();
    assert!(
        said.starts_with(&format!(
            "> you said word\n{input}\n{output}\n{input}\n/dev/pts/"
        )),
        "{said}"
    );
    let own = fs::read_link(format!("/proc/{}/fd/2", tty.child.id())).unwrap();
    assert!(
        !said.contains(own.to_str().unwrap()),
        "stderr is a terminal of its own: {said}"
    );
    fs::write(env.file("go"), "").unwrap();
    assert_eq!(tty.end().code(), Some(0));
}

#[test]
fn no_table_where_it_cannot_be() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let words = [&SPILLING[..], &["wait:700"]].concat();
    // Not a terminal, and one that was asked for all the same.
    for options in [&[][..], &["--stats", "table"]] {
        let mut command = env.greenboost(["run", "--vram-limit", "64M", "--ram-limit", "256M"]);
        command.args(options).arg("--").arg(&actor).args(&words);
        simulated(&env, &mut command);
        let said = stderr(&expect(command.stdin(Stdio::null()), 0));
        assert!(!said.contains('\x1b'), "{said}");
        assert_eq!(
            said.contains("no table: stderr is not a terminal"),
            !options.is_empty(),
            "{said}"
        );
        assert!(
            said.contains("GPU 0 VRAM 64.0 MiB of 64.0 MiB, RAM 48.0 MiB of 256.0 MiB"),
            "{said}"
        );
    }
    // A terminal that can do nothing; and a pipe, whose other end may want the keyboard.
    let script = format!(
        "{GREENBOOST} run --vram-limit 64M --ram-limit 256M -- {} {} | cat",
        actor.display(),
        words.join(" ")
    );
    for is_piped in [false, true] {
        let mut command = match is_piped {
            false => acting(&env, &actor, &[], &words),
            true => env.program("setsid"),
        };
        if is_piped {
            command.args(["-c", "-w", "sh", "-c", &script]);
            simulated(&env, &mut command);
        } else {
            command.env("TERM", "dumb");
        }
        let mut tty = Tty::start(&mut command, 24, 80);
        assert_eq!(tty.end().code(), Some(0));
        assert!(!tty.sent().contains('\x1b'), "{:?}", tty.sent());
        assert!(
            tty.text().contains("GPU 0 VRAM 64.0 MiB of 64.0 MiB"),
            "{}",
            tty.text()
        );
    }
}

#[test]
fn no_color() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let words = [&SPILLING[..], &["until:go"]].concat();
    for color in [true, false] {
        let _ = fs::remove_file(env.file("go"));
        let mut command = acting(&env, &actor, &[], &words);
        if !color {
            command.env("NO_COLOR", "1").env("LC_ALL", "C");
        }
        let mut tty = Tty::start(&mut command, 24, 80);
        tty.wait_until("the table is there", is_settled);
        assert_eq!(tty.sent().contains("\x1b[36m"), color);
        assert_eq!(tty.text().is_ascii(), !color, "{}", tty.text());
        fs::write(env.file("go"), "").unwrap();
        assert_eq!(tty.end().code(), Some(0));
    }
}

#[test]
fn a_program_without_cuda_sees_no_table() {
    let env = TestEnv::new();
    let mut command = env.program("setsid");
    let script = "stty size; printf 'no newline'; sleep 0.6; exit 4";
    command.args(["-c", "-w", GREENBOOST, "run", "--", "sh", "-c", script]);
    simulated(&env, &mut command);
    let mut tty = Tty::start(&mut command, 24, 80);
    assert_eq!(tty.end().code(), Some(4));
    let text = tty.text();
    assert!(
        text.starts_with("24 80\nno newline\ngreenboost: sh ended with status 4"),
        "{text}"
    );
    assert!(!tty.sent().contains("\x1b["), "{:?}", tty.sent());
}

/// PITFALLS 35: a figure above what the link can carry is an error of the counter.
#[test]
fn a_link_busier_than_it_can_be() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let words = [&SPILLING[..], &["until:go"]].concat();
    let mut command = acting(&env, &actor, &[], &words);
    command.env("FAKE_CUDA_TRAFFIC", "1000000:90000000");
    let mut tty = Tty::start(&mut command, 24, 80);
    tty.wait_for("out GB/s");
    let row = tty.lines().into_iter().find(|l| l.starts_with("GPU 0 RAM"));
    let row = row.unwrap();
    assert!(row.ends_with(" 1.0") && !row.contains("90.0"), "{row}");
    assert!(!tty.text().contains("link busy"), "{}", tty.text());
    fs::write(env.file("go"), "").unwrap();
    assert_eq!(tty.end().code(), Some(0));
}

#[test]
fn several_processes_have_a_line_each() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let script = format!(
        "{0} cuda alloc:32 until:go & {0} cuda alloc:16 alloc:48 until:go; wait",
        actor.display()
    );
    let mut command = env.program("setsid");
    command.args(["-c", "-w", GREENBOOST, "run", "--vram-limit", "64M"]);
    command.args(["--ram-limit", "256M", "--", "sh", "-c", &script]);
    simulated(&env, &mut command);
    command.env("FAKE_CUDA_SHARED", env.file("shared"));
    let mut tty = Tty::start(&mut command, 24, 80);
    tty.wait_until("both are shown with what they hold", |tty| {
        let lines = tty.lines();
        let of = |n: usize| {
            lines[n]
                .split_once(" actor: ")
                .map(|(_, held)| held.to_string())
        };
        let sum = |n: usize| of(n).is_some_and(|held| held.contains("VRAM, "));
        lines[18].starts_with("greenboost ") && sum(21) && sum(22) && lines[22].contains("32.0 MiB")
    });
    fs::write(env.file("go"), "").unwrap();
    assert_eq!(tty.end().code(), Some(0));
    assert!(
        tty.text().contains("2 processes used CUDA"),
        "{}",
        tty.text()
    );
}

#[test]
fn records_on_stderr_leave_no_room_for_a_table() {
    let env = TestEnv::new();
    let actor = actor(&env);
    let words = [&SPILLING[..], &["wait:600"]].concat();
    let mut tty = Tty::start(
        &mut acting(&env, &actor, &["--json", "fd:2"], &words),
        24,
        200,
    );
    assert_eq!(tty.end().code(), Some(0));
    assert!(!tty.sent().contains('\x1b'), "{:?}", tty.sent());
    assert!(
        tty.sent().contains("\"type\":\"summary\""),
        "{:?}",
        tty.sent()
    );
}
