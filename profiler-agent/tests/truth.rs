//! Programs whose stacks are known for certain, profiled by the real binary: every sample of each must be in one of its chains, from the
//! root to the leaf.
//!
//! Each program is profiled twice: as a process that runs already, and as a command from its first instruction on. To add one: a source in
//! `workloads/truth/`, and an entry here with its chains (see [`Chains`] for how they are written).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that fails fails"
)]

mod support;

use rustix::process::Signal;
use support::{
    agent::Agent,
    conformance::Rule,
    picture::Otlp,
    tools,
    truth::{Chains, Program},
    workload::{Report, Workload, alone, send, wait_for},
};

/// Samples per second.
const RATE: &str = "997";
/// How long each program is looked at.
const DURATION: &str = "700ms";

/// Defines the programs, and two tests for each.
macro_rules! programs {
    ($($program:ident: $definition:expr;)*) => {
        /// A process that runs already.
        mod running {
            $(#[test]
            fn $program() {
                super::check(&super::programs::$program(), concat!("running::", stringify!($program)), false);
            })*
        }

        /// A command, from its first instruction on.
        mod started {
            $(#[test]
            fn $program() {
                super::check(&super::programs::$program(), concat!("started::", stringify!($program)), true);
            })*
        }

        mod programs {
            use super::*;
            $(pub(super) const fn $program() -> Program {
                const PROGRAM: Program = $definition;
                PROGRAM
            })*
        }
    };
}

const CALLBACKS: &[&str] = &[
    "_start libc libc main with_alloca realigned sort libc+ compare burn_in_compare",
    "_start libc libc main with_array realigned sort libc+ compare burn_in_compare",
];

/// The same where libc is part of the program.
const CALLBACKS_STATIC: &[&str] = &[
    "_start other other main with_alloca realigned sort other+ compare burn_in_compare",
    "_start other other main with_array realigned sort other+ compare burn_in_compare",
    // What any function may call, and what stands before main.
    "~_start other+",
    "~_start other other main other+",
    "~_start other other main with_alloca|with_array other+",
    "~_start other other main with_alloca|with_array realigned other+",
];

const JIT: &[&str] = &[
    "_start libc libc main outermost code between code burn_below_code",
    "_start libc libc main outermost code burn_in_code code",
    // In its first and last instructions code without tables has not made its frame yet, or has left it.
    "![bad_frame_pointer] code",
];

const LIVES: &[&str] = &[
    "_start libc libc main live burn_in_this_life",
    // Each life begins in the loader.
    "~ld ld|libc*",
    // Inside execve(2), when the memory of the old program is gone and its registers are not.
    "![unreadable] libc|[unknown]",
];

const BRIEF: Program = Program::new(
    "brief.c",
    "brief",
    &["_start libc libc main sort libc+ compare burn_in_brief"],
);

programs! {
    callbacks: Program::new("callbacks.c", "callbacks", CALLBACKS);
    callbacks_realigned: Program {
        // Every function that could be called with a stack of 8 bytes' alignment aligns its own.
        flags: &["-mstackrealign", "-mincoming-stack-boundary=3"],
        ..Program::new("callbacks.c", "realigned", CALLBACKS)
    };
    callbacks_static: Program {
        flags: &["-static"],
        ..Program::new("callbacks.c", "static", CALLBACKS_STATIC)
    };
    callbacks_static_pie: Program {
        flags: &["-static-pie"],
        ..Program::new("callbacks.c", "static-pie", CALLBACKS_STATIC)
    };
    callbacks_static_without_header: Program {
        flags: &["-static", "-Wl,--no-eh-frame-hdr"],
        ..Program::new("callbacks.c", "headerless", CALLBACKS_STATIC)
    };
    exceptions: Program::new("exceptions.cpp", "exceptions", &[
        "_start libc libc main in_destructor guarded ~Guard burn_in_destructor",
        "_start libc libc main in_handler burn_in_handler",
        "_start libc libc main in_what what burn_in_what",
        "_start libc libc main in_stop force libgcc_s+ stop burn_in_stop",
        "_start libc libc main in_trace libgcc_s+ trace burn_in_trace",
        "_start libc libc main in_unwinder lightly_guarded? thrower? other? libstdcxx|libgcc_s|libc|ld+",
        "~_start libc libc main in_destructor guarded? thrower? libstdcxx|libgcc_s|libc|ld+",
        "~_start libc libc main in_handler thrower? libstdcxx|libgcc_s|libc|ld+",
        "~_start libc libc main in_what rethrower? thrower? libstdcxx|libgcc_s|libc|ld+",
        "~_start libc libc main in_unwinder lightly_guarded ~Light",
        // When it has found the frame with the handler or the destructors, libgcc copies that frame's saved registers over those that it
        // saved itself, the return address among them (`uw_install_context_1`), and runs on top of them for some instructions more. What
        // can be read then leads to the frame it is about to enter, with the stack pointer of another.
        "!_start libc libc main in_unwinder|in_destructor|in_handler|in_what lightly_guarded? thrower? \
            main|in_unwinder|in_destructor|in_handler|in_what|rethrower|lightly_guarded|guarded libgcc_s libgcc_s?",
        "![no_mapping]|[bad_frame_pointer]|[unreadable]|[bad_rule] [unknown]* lightly_guarded|guarded? thrower? \
            main|in_unwinder|in_destructor|in_handler|in_what|rethrower|lightly_guarded|guarded libgcc_s libgcc_s?",
        "~_start libc libc main in_unwinder|in_destructor|in_handler|in_what lightly_guarded|rethrower? thrower? libstdcxx? other",
    ]);
    threads: Program::new("threads.rs", "threads", &[
        "_start libc libc main other+ main one_round call_generic burn_in_closure",
        "_start libc libc main other+ main one_round call_object work burn_in_object",
        "_start libc libc main other+ main one_round catch other* panic_with_guard other* drop burn_in_drop",
        "libc libc other+ thread_main burn_in_thread",
        "~_start libc libc main other+ main one_round catch other* panic_with_guard? other|libgcc_s|libc|ld+",
        "~libc libc other+ thread_main other",
        "~libc libc other libc",
        "~_start libc libc main other+ main other+ libc*",
        // A thread whose stack nobody has touched yet.
        "![unreadable] libc",
    ]);
    zig: Program::new("zig.zig", "zig", &[
        "other+ zig.main zig.oneRound zig.callPointer zig.burnInPointer",
        "other+ zig.main zig.oneRound zig.callFallible zig.burnInFallible",
        "other+ zig.main zig.oneRound zig.recurse{5} zig.burnInRecursion",
    ]);
    signals: Program::new("signals.c", "signals", &[
        // Timers interrupt by the clock on the wall: on a busy machine no share is sure. `libc` is the place that a handler returns to.
        "~_start libc libc main interrupted_leaf libc on_alternate burn_on_alternate",
        "~_start libc libc main interrupted_leaf libc on_alternate libc on_nested burn_on_nested",
        "~_start libc libc main interrupted_leaf libc on_ordinary burn_on_ordinary",
        "~_start libc libc main call_often prologue? libc on_alternate burn_on_alternate",
        "~_start libc libc main call_often prologue? libc on_alternate libc on_nested burn_on_nested",
        "~_start libc libc main call_often prologue? libc on_ordinary burn_on_ordinary",
        "~_start libc libc main interrupted_leaf",
        "~_start libc libc main call_often prologue",
        // Where the timers are set.
        "~_start libc libc main libc* libc on_alternate burn_on_alternate",
        "~_start libc libc main libc* libc on_alternate libc on_nested burn_on_nested",
        "~_start libc libc main libc* libc on_ordinary burn_on_ordinary",
        // Until the kernel side knows the program, its stacks are copied for user space: the one that it is on.
        "![short_copy] interrupted_leaf|prologue libc+ on_alternate libc* on_nested? burn_on_alternate|burn_on_nested",
        // While rt_sigreturn puts the registers back, some are those of the handler still.
        "![no_mapping]|[bad_frame_pointer]|[unreadable]|[bad_rule]|[short_copy] [unknown]* interrupted_leaf|call_often|prologue|main",
    ]);
    vdso: Program::new("vdso.c", "vdso", &[
        "_start libc libc main read_clock libc clock_gettime|__vdso_clock_gettime",
        "_start libc libc main read_time libc* gettimeofday|__vdso_gettimeofday",
    ]);
    handwritten: Program::new("handwritten.c", "handwritten", &[
        "_start libc libc main deref_rsp burn_below_deref_rsp",
        "_start libc libc main deref_rbp burn_below_deref_rbp",
        "_start libc libc main leaf_in_r10",
        "_start libc libc main leaf_in_r11",
        "_start libc libc main leaf_in_rax",
        "root_without_return burn_below_root",
        "_start libc libc main last_call ends_in_call never_returns burn_below_last_call",
        // Before it has left its caller's stack.
        "~_start libc libc main on_stack_of_junk root_without_return",
    ]);
    saved_register: Program::new("saved_register.c", "saved_register", &[
        "_start libc libc main in_rbx burn_below_rbx",
        "_start libc libc main in_rbx saves_rbx burn_below_rbx",
    ]);
    jit_anonymous: Program {
        arguments: &["anonymous"],
        ..Program::new("jit.c", "jit", JIT)
    };
    jit_file: Program {
        arguments: &["memfd"],
        ..Program::new("jit.c", "jit", JIT)
    };
    deep_900: Program {
        arguments: &["895"],
        ..Program::new("deep.c", "deep", &["_start libc libc main descend{895} burn_at_the_bottom"])
    };
    deep_1023: Program {
        arguments: &["1018"],
        ..Program::new("deep.c", "deep", &["_start libc libc main descend{1018} burn_at_the_bottom"])
    };
    deep_1024: Program {
        arguments: &["1019"],
        ..Program::new("deep.c", "deep", &["_start libc libc main descend{1019} burn_at_the_bottom"])
    };
    deep_1025: Program {
        arguments: &["1020"],
        ..Program::new("deep.c", "deep", &[
            "[truncated] libc libc main descend{1020} burn_at_the_bottom",
            // On the way down.
            "~_start libc libc main descend{1020}",
        ])
    };
    deep_3000: Program {
        arguments: &["2995"],
        ..Program::new("deep.c", "deep", &[
            "[truncated] descend{1023} burn_at_the_bottom",
            "~[truncated] main descend{1023}",
            "~[truncated] libc main descend{1022}",
            "~[truncated] libc libc main descend{1021}",
            "~[truncated] descend{1024}",
            "~_start libc libc main descend{1020}",
        ])
    };
    plugins: Program {
        flags: &["-ldl"],
        arguments: &["@libplugin.so"],
        needs: &[Program {
            flags: &["-shared", "-fPIC"],
            ..Program::new("plugin.c", "libplugin.so", &[])
        }],
        ..Program::new("plugins.c", "plugins", &[
            "_start libc libc main one_round plugin_entry burn_in_plugin",
            "~_start libc libc main one_round libc|ld+ other*",
            // GCC's crtstuff.c, which dlclose(3) runs, has no call frame information.
            "![bad_frame_pointer] other",
        ])
    };
    forks: Program {
        // Each child would look up every function anew, by way of the unnamed start of the procedure linkage table.
        flags: &["-Wl,-z,now"],
        ..Program::new("forks.c", "forks", &[
            "_start libc libc main one_round in_child burn_in_child",
            // The page of the stack is the very one that is being copied for the child.
            "![unreadable] libc",
        ])
    };
    lives: Program {
        arguments: &["@lives-too"],
        needs: &[Program::new("lives.c", "lives-too", &[])],
        ..Program::new("lives.c", "lives", LIVES)
    };
    lives_at_fixed_addresses: Program {
        flags: &["-no-pie"],
        arguments: &["@lives-too"],
        needs: &[Program::new("lives.c", "lives-too", &[])],
        ..Program::new("lives.c", "lives-fixed", LIVES)
    };
    mappings: Program::new("mappings.c", "mappings", &[
        // It takes a while to make them, so that no share is sure.
        "~_start libc libc main call code burn_below_mapping",
        "~_start libc libc main libc*",
        // One sample on the `ret` behind `pop %rbp`, where the frame pointer is the caller's again.
        "!_start libc libc main code",
        "![bad_frame_pointer]|[no_rule] code",
    ]);
    orphan: Program::new("orphan.c", "orphan", &[
        "libc libc orphan burn_in_orphan",
        "~_start libc libc main",
    ]);
    coroutines: Program::new("coroutines.c", "coroutines", &[
        "libc entry burn_in_coroutine",
        "libc other_entry burn_in_other",
        "~_start libc libc main resume",
    ]);
}

/// The profile of an agent; some of these programs, and code made at run time, have no build ID.
fn profile(agent: &Agent) -> Otlp {
    Otlp::read_except(&agent.path("out.otlp"), &[Rule::BuildId])
}

/// Profiles a program and checks every sample.
fn check(program: &Program, test: &str, from_start: bool) {
    let path = match program.compile() {
        Ok(path) => path,
        Err(lacking) => return tools::skip(test, lacking),
    };
    let Some(_alone) = alone(test) else { return };
    let agent = Agent::new();
    let options = ["-F", RATE, "-d", DURATION, "-o", "out.otlp"];
    let run = if from_start {
        let command = ["--".to_owned(), path.to_str().unwrap().to_owned()];
        let options = options.map(str::to_owned).into_iter();
        agent.run(options.chain(command).chain(program.arguments()))
    } else {
        let target = Workload::start(&path, program.arguments());
        // Long enough for it to be at what it does for ever, on whatever machine.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let pid = target.pid().to_string();
        agent.run(options.into_iter().chain(["-p", &pid]))
    };
    // Whether samples are lost, and counted, is another question: a thousand frames a thousand times a second fill a ring in a tenth of one.
    run.expect(0, &[]);
    let otlp = profile(&agent);
    let wrong = Chains::new(program.chains, from_start).check(&otlp);
    assert!(wrong.is_empty(), "{}:\n{wrong}", program.name);
}

/// The kernel tells of events that it had no room for with the next event alone. Here none comes: after its 5,000 mappings the program makes no more.
#[test]
fn mappings_that_no_event_told_of_are_learned() {
    const TEST: &str = "mappings_that_no_event_told_of_are_learned";
    let program = programs::mappings();
    let path = match program.compile() {
        Ok(path) => path,
        Err(lacking) => return tools::skip(TEST, lacking),
    };
    let Some(_alone) = alone(TEST) else { return };
    // It waits until the agent looks away.
    let script = format!("kill -STOP $$; exec {}", path.display());
    let target = Workload::start(std::path::Path::new("/bin/sh"), ["-c", &script]);
    let pid = target.pid().to_string();
    wait_for("the shell to stop", || state(target.pid()) == Some(b'T'));
    let agent = Agent::new();
    let mut running = agent.start(["-F", RATE, "-d", "3s", "-o", "out.otlp", "-p", &pid]);
    running.samples();
    running.send(Signal::STOP);
    wait_for("the agent to stop", || state(running.pid()) == Some(b'T'));
    send(target.pid(), Signal::CONT);
    std::thread::sleep(std::time::Duration::from_millis(500));
    running.send(Signal::CONT);
    running.finish().expect(0, &[]);
    let otlp = profile(&agent);
    let chains = Chains::new(program.chains, true);
    let (fine, seen) = chains.count(&otlp);
    // The agent was away for half a second and more.
    assert!(2 * fine > seen, "{fine} of {seen}:\n{}", chains.check(&otlp));
}

/// The letter that the kernel has for what a process does.
fn state(pid: u32) -> Option<u8> {
    Some(profiler_agent::procfs::Stat::of(pid)?.state)
}

/// How long programs of 20 ms are run back to back; `PROFILER_TEST_DRIVER_SECONDS` for more.
const DRIVEN_SECONDS: u64 = 5;

#[test]
fn programs_of_20_ms_are_seen_whole() {
    const TEST: &str = "programs_of_20_ms_are_seen_whole";
    let driver = Program::new("driver.c", "driver", &[]);
    let (Ok(driver), Ok(brief)) = (driver.compile(), BRIEF.compile()) else {
        return tools::skip(TEST, "a C compiler (Debian package gcc)");
    };
    let Some(_alone) = alone(TEST) else { return };
    let seconds = std::env::var("PROFILER_TEST_DRIVER_SECONDS")
        .map_or(DRIVEN_SECONDS, |seconds| seconds.parse().unwrap());
    let agent = Agent::new();
    let run = agent.run([
        "-F",
        RATE,
        "-o",
        "out.otlp",
        "--",
        driver.to_str().unwrap(),
        brief.to_str().unwrap(),
        &(seconds * 1000).to_string(),
        "report",
    ]);
    run.expect(0, &["\nlost: 0\n"]);
    let report = Report::read(&agent.path("report"));
    let otlp = profile(&agent);
    let mut chains = BRIEF.chains.to_vec();
    // The driver itself, whose children are its own until they run the program.
    chains.push("~_start libc libc main");
    let (fine, seen) = Chains::new(&chains, true).count(&otlp);
    let burnt = report.get("children") + report.get("self");
    let expected = burnt as f64 * RATE.parse::<f64>().unwrap() / 1e9;
    let said = format!(
        "{} programs, {:.0} samples expected, {seen} seen, {fine} of them whole",
        report.get("programs"),
        expected
    );
    println!("{said}");
    assert!(seen as f64 >= 0.97 * expected, "{said}");
    assert!(fine as f64 >= 0.97 * expected, "{said}");
    let wrong = Chains::new(&chains, true).check(&otlp);
    assert!(fine as f64 >= 0.97 * seen as f64, "{said}\n{wrong}");
}
