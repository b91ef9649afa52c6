use super::*;

fn passed(filter: &mut Filter, text: &[u8]) -> String {
    let mut out = Vec::new();
    filter.pass(text, &mut out);
    String::from_utf8(out).unwrap()
}

fn table() -> Filter {
    let mut filter = Filter::new();
    filter.set_rows(Some(20));
    filter
}

#[test]
fn nothing_is_changed_without_the_table() {
    let text = "a\x1b[999;999H\x1b[r\x1b[2J\x1b]0;title\x07b\x1b[?1049h\x1b[?1049l\x1bc\x1b#8ü\n";
    assert_eq!(passed(&mut Filter::new(), text.as_bytes()), text);
}

#[test]
fn in_any_pieces_the_same() {
    let text =
        "ü€😀\x1b[999;7Hx\x1b[r\x1b[3;99ry\x1b]0;t\u{fc}\x1b\\z\x1b[99d\x1b[2J\x1b[31m\r\n\x1b(B.";
    let expected = "ü€😀\x1b[20;7Hx\x1b[1;20r\x1b[3;20ry\x1b]0;t\u{fc}\x1b\\z\x1b[20d\x1b[2J\x1b[31m\r\n\x1b(B.";
    for size in 1..text.len() {
        let mut filter = table();
        let mut out = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            let before = out.len();
            filter.pass(piece, &mut out);
            if filter.is_between() && out.len() > before {
                assert!(std::str::from_utf8(&out).is_ok(), "ends inside a character");
            }
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            expected,
            "in pieces of {size}"
        );
        assert!(filter.wiped);
    }
}

#[test]
fn the_alternate_screen_is_whole() {
    let mut filter = table();
    let on = passed(&mut filter, b"\x1b[?1049h\x1b[99;1H\x1b[1;24r");
    assert_eq!(on, "\x1b7\x1b[r\x1b8\x1b[?1049h\x1b[99;1H\x1b[1;24r");
    assert!(filter.alternate && !filter.wiped);
    let off = passed(&mut filter, b"\x1b[?1049l");
    assert_eq!(off, "\x1b[?1049l\x1b7\x1b[1;20r\x1b8");
    assert!(!filter.alternate && filter.wiped);
}

#[test]
fn the_saved_cursor_is_the_programs() {
    let mut filter = table();
    assert!(filter.may_save());
    passed(&mut filter, b"\x1b7progress");
    assert!(!filter.may_save(), "saved, not restored");
    passed(&mut filter, b"\x1b8");
    assert!(!filter.may_save(), "it may restore it again");
    passed(&mut filter, b"\x1b7progress\x1b8");
    assert!(filter.may_save(), "it saves each time");
    passed(&mut filter, b"\x1b8");
    assert!(filter.never_saves(), "it restored the same once more");
}

#[test]
fn lines() {
    let mut filter = table();
    passed(&mut filter, b"50 %\r");
    assert!(!filter.at_line_start);
    passed(&mut filter, b"done\r\n\x1b[m");
    assert!(filter.at_line_start);
    passed(&mut filter, b"\x1b[?1049h...");
    assert!(!filter.at_line_start);
    passed(&mut filter, b"\x1b[?1049l");
    assert!(filter.at_line_start, "where it was");
}

#[test]
fn what_is_left_behind_is_undone() {
    let mut filter = table();
    passed(
        &mut filter,
        b"\x1b[?1049h\x1b[?25l\x1b[?1000;1006h\x1b[?2004h\x1b[?2004l\x1b[1;31m",
    );
    assert_eq!(
        filter.undo(),
        "\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1006l\x1b[m"
    );
    assert_eq!(filter.undo(), "");
}

#[test]
fn a_sequence_without_end_is_let_go() {
    let mut filter = table();
    let text = format!("\x1b[{}", "1;".repeat(300));
    assert_eq!(passed(&mut filter, text.as_bytes()), text);
}
