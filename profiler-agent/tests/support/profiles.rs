//! Profiles to test with: one made by hand, and arbitrary ones.

use std::collections::BTreeMap;

use profiler_agent::{
    profile::{
        Capture, FrameKind, Function, FunctionId, Kind, Language, Line, Location, LocationId, Mapping,
        MappingId, MappingKind, Process, ProcessId, Profile, Runtime, Sample, Stack, StackId, StringId,
    },
    telemetry::Loss,
};
use profiler_common::Outcome;
use proptest::prelude::*;

/// When the profiles of this module begin: 2026-11-21T04:11:53.25Z.
pub const START: u64 = 1_795_234_313_250_000_000;

/// Compiled code of no special language.
pub const NATIVE: FrameKind = FrameKind::Native(Language::Other);

/// Makes profiles without equal rows, as the aggregator does.
#[derive(Debug, Clone)]
pub struct Builder {
    pub profile: Profile,
}

/// Row of a value in a table, put there if it is not.
fn intern<T: PartialEq>(table: &mut Vec<T>, row: T) -> u32 {
    let place = table.iter().position(|other| *other == row).unwrap_or_else(|| {
        table.push(row);
        table.len() - 1
    });
    u32::try_from(place).unwrap()
}

impl Builder {
    pub fn new(target: &str) -> Self {
        Self {
            profile: Profile {
                capture: Capture {
                    target: target.to_owned(),
                    command: String::new(),
                    host: "web-1.example".to_owned(),
                    start: START,
                    duration: 30_000_000_000,
                    frequency: 99,
                    clock: "cpu-clock",
                    lost: BTreeMap::new(),
                },
                strings: vec!["".into()],
                processes: Vec::new(),
                mappings: Vec::new(),
                functions: Vec::new(),
                locations: Vec::new(),
                stacks: Vec::new(),
                samples: Vec::new(),
            },
        }
    }

    pub fn string(&mut self, text: &str) -> StringId {
        StringId(intern(&mut self.profile.strings, text.into()))
    }

    pub fn process(&mut self, pid: u32, name: &str, executable: &str) -> ProcessId {
        let process = Process {
            pid,
            start: START - u64::from(pid) * 1_000_000_000,
            name: self.string(name),
            executable: self.string(executable),
            service: StringId(0),
            attributes: Vec::new(),
        };
        ProcessId(intern(&mut self.profile.processes, process))
    }

    pub fn mapping(&mut self, kind: MappingKind, path: &str, start: u64, build_id: &[u8]) -> MappingId {
        let mapping = Mapping {
            kind,
            start,
            limit: start + 0x10_0000,
            file_offset: if kind == MappingKind::File { 0x1000 } else { 0 },
            path: self.string(path),
            build_id: build_id.to_vec(),
            go_build_id: StringId(0),
            htlhash: (kind == MappingKind::File).then_some([start.to_le_bytes()[2]; 16]),
            remark: StringId(0),
        };
        MappingId(intern(&mut self.profile.mappings, mapping))
    }

    pub fn function(&mut self, name: &str, system_name: &str, file: &str, start_line: u32) -> FunctionId {
        let function = Function {
            name: self.string(name),
            system_name: self.string(system_name),
            file: self.string(file),
            start_line,
        };
        FunctionId(intern(&mut self.profile.functions, function))
    }

    /// A location of functions, innermost first.
    pub fn location(
        &mut self,
        kind: FrameKind,
        mapping: Option<MappingId>,
        address: u64,
        functions: &[FunctionId],
    ) -> LocationId {
        let location = Location {
            kind,
            mapping,
            address,
            by_frame_pointer: matches!(kind, FrameKind::Jit(_)) || address % 7 == 3 && kind == NATIVE,
            is_named: true,
            lines: (10..)
                .zip(functions)
                .map(|(line, &function)| Line {
                    function,
                    line,
                    column: line % 3,
                })
                .collect(),
        };
        LocationId(intern(&mut self.profile.locations, location))
    }

    pub fn stack(&mut self, frames: &[LocationId], outcome: Outcome) -> StackId {
        let stack = Stack {
            frames: frames.to_vec(),
            outcome,
        };
        StackId(intern(&mut self.profile.stacks, stack))
    }

    pub fn sample(
        &mut self,
        process: ProcessId,
        tid: u32,
        thread: &str,
        cpu: u32,
        stack: StackId,
        timestamps: &[u64],
    ) {
        let thread_name = self.string(thread);
        let same = self.profile.samples.iter_mut().find(|sample| {
            (
                sample.process,
                sample.tid,
                sample.thread_name,
                sample.cpu,
                sample.stack,
            ) == (process, tid, thread_name, cpu, stack)
        });
        let period = self.profile.capture.period();
        let count = timestamps.len() as u64;
        if let Some(sample) = same {
            sample.timestamps.extend(timestamps);
            sample.timestamps.sort_unstable();
            sample.count += count;
            sample.weight += count * period;
        } else {
            let mut timestamps = timestamps.to_vec();
            timestamps.sort_unstable();
            self.profile.samples.push(Sample {
                kind: Kind::Cpu,
                process,
                tid,
                thread_name,
                cpu,
                stack,
                count,
                weight: count * period,
                timestamps,
            });
        }
    }
}

/// A web server as it might look: two threads, Rust and C, inlined and kernel frames, a JIT, one stack cut off.
pub fn server() -> Profile {
    let mut b = Builder::new("shop-server (4242)");
    let shop = b.process(4242, "shop-server", "/usr/bin/shop-server");
    let worker = b.process(4243, "image worker", "/opt/shop/bin/worker");
    let exe = b.mapping(MappingKind::File, "/usr/bin/shop-server", 0x1000, &[0xab; 20]);
    let libc = b.mapping(
        MappingKind::File,
        "/usr/lib/libc.so.6",
        0x2_8000,
        &[0x1c, 0xff, 0x00, 0x7e],
    );
    let kernel = b.mapping(
        MappingKind::Kernel,
        "[kernel]",
        0xffff_ffff_8100_0000,
        &[0x5e; 20],
    );
    let jit = b.mapping(MappingKind::Anonymous, "[anon]", 0x7f00_0000_0000, &[]);

    let mut native = |name: &str, file: &str, address: u64| {
        let function = b.function(name, &format!("_Z{}{}", name.len(), name), file, 7);
        b.location(NATIVE, Some(exe), 0x1000 + address, &[function])
    };
    let start = native("_start", "", 1);
    let main = native("shop::main", "src/main.rs", 2);
    let handle = native("shop::http::handle", "src/http.rs", 3);
    let query = native("shop::db::Pool::query", "src/db.rs", 4);
    let render = native("shop::page::render", "src/page.rs", 5);
    let sort = native(
        "core::slice::sort::stable::driftsort_main",
        "library/core/src/slice/sort.rs",
        6,
    );
    let resize = native("worker::resize", "src/resize.rs", 7);
    let escape = b.function("shop::page::escape", "_ZN4shop4page6escapeE", "src/page.rs", 40);
    let push = b.function(
        "alloc::string::String::push_str",
        "_ZN5alloc6string6String8push_strE",
        "string.rs",
        9,
    );
    let inlined = b.location(NATIVE, Some(exe), 0x1100, &[push, escape]);
    let write = b.function("__write", "__write", "", 0);
    let write = b.location(NATIVE, Some(libc), 0x2_9000, &[write]);
    let mut in_kernel = |name: &str, address: u64| {
        let function = b.function(name, name, "", 0);
        b.location(
            FrameKind::Kernel,
            Some(kernel),
            0xffff_ffff_8100_0000 + address,
            &[function],
        )
    };
    let entry = in_kernel("entry_SYSCALL_64_after_hwframe", 1);
    let send = in_kernel("tcp_sendmsg", 2);
    let copy = in_kernel("copy_user_enhanced_fast_string", 3);
    let script = b.function("template:index.html", "template:index.html", "", 0);
    let script = b.location(
        FrameKind::Jit(Runtime::V8),
        Some(jit),
        0x7f00_0000_0040,
        &[script],
    );
    let marker = b.function(
        "[truncated: no unwind rule]",
        "[truncated: no unwind rule]",
        "",
        0,
    );
    let marker = b.location(FrameKind::Marker, None, 0, &[marker]);

    let stacks = [
        (
            b.stack(&[query, handle, main, start], Outcome::Complete),
            shop,
            4242,
            "shop-server",
            21,
        ),
        (
            b.stack(&[sort, query, handle, main, start], Outcome::Complete),
            shop,
            4242,
            "shop-server",
            34,
        ),
        (
            b.stack(&[inlined, render, handle, main, start], Outcome::Complete),
            shop,
            4250,
            "http-2",
            18,
        ),
        (
            b.stack(&[script, render, handle, main, start], Outcome::Complete),
            shop,
            4250,
            "http-2",
            12,
        ),
        (
            b.stack(
                &[copy, send, entry, write, handle, main, start],
                Outcome::Complete,
            ),
            shop,
            4250,
            "http-2",
            16,
        ),
        (
            b.stack(&[send, entry, write, handle, main, start], Outcome::Complete),
            shop,
            4242,
            "shop-server",
            9,
        ),
        (
            b.stack(&[resize, main, start], Outcome::Complete),
            worker,
            4243,
            "image worker",
            25,
        ),
        (
            b.stack(&[resize, marker], Outcome::NoRule),
            worker,
            4243,
            "image worker",
            5,
        ),
    ];
    let mut time = START;
    for round in 0..20_u32 {
        for &(stack, process, tid, thread, share) in &stacks {
            for _ in 0..share {
                time += 10_000_000;
                b.sample(process, tid, thread, round % 2, stack, &[time]);
            }
        }
    }
    b.profile.capture.duration = time + 1 - START;
    b.profile.capture.lost = BTreeMap::from([(Loss::RingFull, 3)]);
    b.profile
}

/// Names as a hostile program would choose them, among ordinary ones.
pub fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-c]{1,3}",
        1 => any::<String>(),
        1 => prop::sample::select(HOSTILE.as_slice()).prop_map(str::to_owned),
        1 => Just("x".repeat(10_000)),
    ]
}

/// Names that some format might stumble over.
pub const HOSTILE: [&str; 14] = [
    "<script>alert(1)</script>",
    "]]></script><script>alert(1)</script>",
    "\"onload=\"alert(1)\" x='",
    "a;b;c 17",
    "two\nlines 5\r\n",
    "\0\u{1}\u{1b}[2J\u{7f}\u{85}",
    "operator 5 6",
    "evil_[k]",
    "--><!-- &amp; &#0;",
    "\u{202e}gnp.exe",
    "\u{fffd}\u{ffff}\u{fffe}",
    "   ",
    "# comment",
    "",
];

/// An arbitrary profile that keeps the promises of [`Profile`].
pub fn arbitrary() -> impl Strategy<Value = Profile> {
    let function = (name(), name(), name(), 0..3_u32);
    let location = (
        0..5_u8,
        prop::option::of(0..4_usize),
        0..0x10_0000_u64,
        prop::collection::vec(0..8_usize, 1..4),
    );
    let stack = (prop::collection::vec(0..8_usize, 0..6), 0..Outcome::ALL.len());
    let sample = (
        0..3_usize,
        1..4_u32,
        name(),
        0..3_u32,
        0..8_usize,
        prop::collection::vec(0..1_000_000_u64, 1..5),
    );
    (
        (name(), name(), any::<bool>()),
        prop::collection::vec((1..4_u32, name(), name()), 3),
        prop::collection::vec(
            (
                0..4_u8,
                name(),
                0..4_u64,
                prop::collection::vec(any::<u8>(), 0..21),
            ),
            4,
        ),
        prop::collection::vec(function, 8),
        prop::collection::vec(location, 8),
        prop::collection::vec(stack, 8),
        prop::collection::vec(sample, 1..20),
        prop::collection::btree_map(prop::sample::select(Loss::ALL.as_slice()), 1..1000_u64, 0..3),
    )
        .prop_map(
            |(head, processes, mappings, functions, locations, stacks, samples, lost)| {
                let (target, host, with_timestamps) = head;
                let mut b = Builder::new(&target);
                b.profile.capture.host = host;
                b.profile.capture.duration = 1_000_000;
                b.profile.capture.lost = lost;
                let processes: Vec<_> = processes
                    .iter()
                    .map(|(pid, name, exe)| b.process(*pid, name, exe))
                    .collect();
                let mappings: Vec<_> = mappings
                    .iter()
                    .map(|(kind, path, start, id)| {
                        let kind = [
                            MappingKind::File,
                            MappingKind::Vdso,
                            MappingKind::Kernel,
                            MappingKind::Anonymous,
                        ][usize::from(*kind)];
                        b.mapping(kind, path, start * 0x10_0000, id)
                    })
                    .collect();
                let functions: Vec<_> = functions
                    .iter()
                    .map(|(name, system, file, line)| b.function(name, system, file, *line))
                    .collect();
                let locations: Vec<_> = locations
                    .iter()
                    .map(|(kind, mapping, offset, lines)| {
                        let kind = [
                            NATIVE,
                            FrameKind::Kernel,
                            FrameKind::Jit(Runtime::V8),
                            FrameKind::Native(Language::Go),
                            FrameKind::Marker,
                        ][usize::from(*kind)];
                        let mapping = mapping.map(|mapping| mappings[mapping]);
                        let start = mapping.map_or(0, |mapping| b.profile.mappings[mapping.index()].start);
                        let lines: Vec<_> = lines.iter().map(|&line| functions[line]).collect();
                        b.location(kind, mapping, start + offset, &lines)
                    })
                    .collect();
                let stacks: Vec<_> = stacks
                    .iter()
                    .map(|(frames, outcome)| {
                        let frames: Vec<_> = frames.iter().map(|&frame| locations[frame]).collect();
                        b.stack(&frames, Outcome::ALL[*outcome])
                    })
                    .collect();
                for (process, tid, thread, cpu, stack, times) in &samples {
                    let times: Vec<u64> = times.iter().map(|time| START + time).collect();
                    b.sample(processes[*process], *tid, thread, *cpu, stacks[*stack], &times);
                }
                for location in b.profile.locations.iter_mut().step_by(3) {
                    location.is_named = false;
                }
                if !with_timestamps {
                    for sample in &mut b.profile.samples {
                        sample.timestamps.clear();
                    }
                }
                b.profile
            },
        )
}

/// Every name that some format might stumble over, in every place that has a name.
pub fn hostile() -> Profile {
    let mut b = Builder::new(HOSTILE[1]);
    let names: Vec<&str> = HOSTILE.into_iter().collect();
    let long = "long".repeat(2_500);
    for (number, name) in (1..).zip(names.iter().copied().chain([&*long])) {
        let process = b.process(number, name, name);
        let mapping = b.mapping(MappingKind::File, name, 0x1000, &[]);
        let function = b.function(name, name, name, 1);
        let location = b.location(NATIVE, Some(mapping), u64::from(number), &[function, function]);
        let stack = b.stack(&[location, location], Outcome::Complete);
        b.sample(
            process,
            number,
            name,
            0,
            stack,
            &[START + u64::from(number) * 1_000_000],
        );
    }
    b.profile.capture.host = HOSTILE[0].to_owned();
    b.profile.capture.duration = 1_000_000_000;
    b.profile
}
