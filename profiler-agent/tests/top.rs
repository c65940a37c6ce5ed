//! `top`: in a real terminal, through a pipe, of its own samples and of those of a running agent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a test that fails fails"
)]

mod support;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use support::{
    agent::{Agent, PROGRAM, address},
    tools,
    workload::{Workload, alone, compiled, root, text, wait_for},
};

/// A program in a terminal of its own, made by `script`.
struct Terminal {
    /// `script`, which ends with its standard input.
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
    folder: tempfile::TempDir,
}

impl Terminal {
    /// Starts the agent there; before and after it the terminal's settings are noted.
    fn start(test: &str, arguments: &str) -> Option<Self> {
        if tools::find("SCRIPT", Some("script")).is_none() {
            tools::skip(test, "script (Debian package bsdutils)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let lines = format!(
            "stty rows 30 cols 100; stty -g > before; {PROGRAM} {arguments} & echo $! > pid; fg > /dev/null; \
             echo $? > code; stty -g > after"
        );
        let mut child = Command::new("script")
            .args(["-qec", &format!("bash -mc '{lines}'"), "/dev/null"])
            .current_dir(folder.path())
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut out = child.stdout.take().unwrap();
        thread::spawn({
            let seen = Arc::clone(&seen);
            move || {
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = out.read(&mut piece) {
                    seen.lock().unwrap().extend_from_slice(&piece[..count]);
                }
            }
        });
        Some(Self { child, seen, folder })
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn press(&mut self, keys: &str) {
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(keys.as_bytes())
            .unwrap();
    }

    fn wait_for(&self, words: &str) {
        wait_for(words, || self.seen().contains(words));
    }

    /// Waits for the end, and looks whether the terminal is as it was.
    fn finish(mut self) -> String {
        wait_for("the end", || {
            self.file("after").metadata().is_ok_and(|file| file.len() > 0)
        });
        self.child.wait().unwrap();
        assert_eq!(text(&self.file("before")), text(&self.file("after")));
        let seen = self.seen();
        // The other screen is left, and the cursor is there again.
        let (shown, left) = (seen.rfind("\u{1b}[?25h"), seen.rfind("\u{1b}[?1049l"));
        assert!(shown.is_some() && left > seen.rfind("\u{1b}[?1049h"), "{seen:?}");
        text(&self.file("code")).trim().to_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that fails leaves nothing behind. The pid of what has ended may be another's.
        let has_ended = self.file("after").exists();
        if let (false, Ok(pid)) = (has_ended, std::fs::read_to_string(self.file("pid"))) {
            let _ = Command::new("kill")
                .args(["-KILL", pid.trim()])
                .stderr(Stdio::null())
                .status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn in_a_terminal_that_is_given_back() {
    const TEST: &str = "in_a_terminal_that_is_given_back";
    let Some(_alone) = alone(TEST) else { return };
    let program = Workload::start(&compiled("cycle"), ["3000"]);
    let pid = program.pid();
    let Some(mut terminal) = Terminal::start(TEST, &format!("top --own -F 199 -p {pid}")) else {
        return;
    };
    terminal.wait_for("processes of cycle");
    terminal.wait_for(&format!("{pid}"));
    terminal.press("\t");
    terminal.wait_for("functions of cycle");
    terminal.wait_for("phase_");
    terminal.press("s");
    terminal.wait_for("by all samples");
    terminal.press("/nosuchthing\r");
    terminal.wait_for("those with nosuchthing");
    terminal.press("3");
    terminal.wait_for("flamegraph of cycle");
    terminal.wait_for("│main");
    terminal.press("?");
    terminal.wait_for("hold what is shown");
    terminal.press("q");
    assert_eq!(terminal.finish(), "0");
}

#[test]
fn a_signal_gives_the_terminal_back_too() {
    const TEST: &str = "a_signal_gives_the_terminal_back_too";
    let Some(_alone) = alone(TEST) else { return };
    for name in ["TERM", "INT", "HUP"] {
        let Some(terminal) = Terminal::start(TEST, "top --own") else {
            return;
        };
        terminal.wait_for("processes, by CPU time");
        let pid = text(&terminal.file("pid"));
        let status = Command::new("kill")
            .args([&format!("-{name}"), pid.trim()])
            .status();
        assert!(status.unwrap().success());
        assert_eq!(terminal.finish(), "0", "{name}");
    }
}

#[test]
fn through_a_pipe_it_is_one_table() {
    const TEST: &str = "through_a_pipe_it_is_one_table";
    let Some(_alone) = alone(TEST) else { return };
    let program = Workload::start(&compiled("cycle"), ["3000"]);
    let pid = program.pid().to_string();
    let run = Agent::new().run(["top", "--own", "-n", "5", "-p", &pid]);
    run.expect(0, &[]);
    assert!(
        run.stdout.contains(&format!("functions of cycle ({pid})")),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("phase_") && !run.stdout.contains('\u{1b}'),
        "{}",
        run.stdout
    );

    // The same of a running agent, by both ways to it.
    let agent = Agent::new();
    let running = agent.start(["--serve", "127.0.0.1:0", "-F", "199"]);
    let address = address(&running);
    let tcp = Agent::new().run(["top", "--from", &address, "--once", "-p", &pid]);
    tcp.expect(0, &[]);
    assert!(tcp.stdout.contains("phase_"), "{}", tcp.stdout);
    let all = Agent::new().run(["top", "--from", &address, "--filter", "^cycle$|^phase_"]);
    all.expect(0, &[]);
    for words in [
        "processes, by CPU time, those with",
        "  cycle",
        "  phase_",
        "CPUs in use",
    ] {
        assert!(all.stdout.contains(words), "{words}: {}", all.stdout);
    }
    // The first samples of a program may come before its tables and names.
    wait_for("a flamegraph as text", || {
        let arguments = [
            "top",
            "--from",
            &address,
            "--screen",
            "flamegraph",
            "-p",
            &pid,
            "--last",
            "2s",
        ];
        let picture = Agent::new().run(arguments);
        picture.expect(0, &[]);
        picture.stdout.contains("│main")
    });

    // Ranges of time stand for files.
    let report = Agent::new().run(["report", "1m..", "--from", &address]);
    report.expect(0, &[]);
    assert!(report.stdout.contains("phase_"), "{}", report.stdout);
    let folder = Agent::new();
    folder
        .run([
            "diff", "1m..", "1m..", "--from", &address, "-o", "x.html", "-o", "x.svg",
        ])
        .expect(0, &[]);
    assert!(text(&folder.path("x.html")).contains("data-state=\"base=0-"));
    let nothing = Agent::new().run([
        "report",
        "2000-01-01T00:00:00Z..2000-01-02T00:00:00Z",
        "--from",
        &address,
    ]);
    nothing.expect(1, &["none in the range that was asked for"]);
    drop(running);

    let socket = agent.path("socket");
    let serve = format!("unix:{}", socket.display());
    let running = agent.start(["--serve", &serve, "-F", "199"]);
    wait_for("the socket", || socket.exists());
    let unix = Agent::new().run(["top", "--from", &serve]);
    unix.expect(0, &[]);
    assert!(unix.stdout.contains("  cycle\n"), "{}", unix.stdout);
    drop(running);
}

#[test]
fn where_nobody_answers_it_says_so() {
    if !root("where_nobody_answers_it_says_so") {
        return;
    }
    for arguments in [
        &["top", "--from", "127.0.0.1:1"][..],
        &["report", "5m..", "--from", "127.0.0.1:1"],
    ] {
        Agent::new()
            .run(arguments)
            .expect(1, &["no agent answers at http://127.0.0.1:1", "--serve"]);
    }
    assert!(!Path::new("5m..").exists() && File::open("5m..").is_err());
}

#[test]
fn what_says_how_to_capture_is_not_said_to_a_verb() {
    for (arguments, words) in [
        (&["-p", "1", "report", "x.folded"][..], "--pid before `report`"),
        (&["-d", "5s", "top"], "--duration before `top`"),
        (
            &["-q", "render", "x.folded", "-o", "y.svg"],
            "--quiet before `render`",
        ),
    ] {
        Agent::new().run(arguments).expect(2, &[words, "stand behind it"]);
    }
}
