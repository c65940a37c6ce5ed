//! Perf events as file descriptors: the sampling clock of a CPU, and the event that owns a CPU's ring.
//!
//! aya can attach a program to a perf event, but opens the event itself and without what this agent needs: idle CPUs
//! left out, a ring with a watermark, side-band records. So the events are opened here and the loaded program is tied to them.
#![expect(
    unsafe_code,
    reason = "perf_event_open and its ioctls have no safe wrapper in a maintained crate"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{perf_event_attr, perf_event_sample_format, perf_hw_id, perf_sw_ids, perf_type_id};

/// What makes a CPU tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The hardware's cycle counter: ticks in NMI, so that code with interrupts off is seen too.
    Cycles,
    /// A timer: where there is no PMU, as in most virtual machines.
    CpuClock,
}

impl Clock {
    /// Name for people, as `perf list` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::CpuClock => "cpu-clock",
        }
    }

    const fn event(self) -> (perf_type_id, u64) {
        match self {
            Self::Cycles => (
                perf_type_id::PERF_TYPE_HARDWARE,
                perf_hw_id::PERF_COUNT_HW_CPU_CYCLES as u64,
            ),
            Self::CpuClock => (
                perf_type_id::PERF_TYPE_SOFTWARE,
                perf_sw_ids::PERF_COUNT_SW_CPU_CLOCK as u64,
            ),
        }
    }
}

/// A perf event of one CPU, all processes.
#[derive(Debug)]
pub struct PerfEvent(OwnedFd);

impl AsFd for PerfEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PerfEvent {
    /// A clock that ticks `frequency` times a second while `cpu` is busy; it stands still until [`Self::enable`].
    ///
    /// # Errors
    ///
    /// Those of `perf_event_open(2)`: `ENOENT`/`EOPNOTSUPP` without such a clock, `EACCES`/`EPERM` without
    /// `CAP_PERFMON`, `ENODEV` when the CPU is offline, `EINVAL` when the rate is above the kernel's limit.
    pub fn clock(clock: Clock, frequency: u32, cpu: u32) -> io::Result<Self> {
        let (kind, config) = clock.event();
        let mut attr = attr(kind, config);
        attr.__bindgen_anon_1.sample_freq = frequency.into();
        attr.set_freq(1);
        attr.set_disabled(1);
        // A timer ticks on idle CPUs too; this spares even the call of the program there.
        attr.set_exclude_idle(1);
        Self::open(&attr, cpu)
    }

    /// The owner of the ring that receives the side-band records of `cpu`: every fork, exec, exit and executable mapping. It counts nothing.
    ///
    /// `build_ids` asks the kernel (5.12 and later) for the build ID of mapped files in place of their inode.
    ///
    /// # Errors
    ///
    /// As [`Self::clock`]; `EINVAL` when the kernel cannot report build IDs.
    pub fn ring_owner(cpu: u32, wakeup_bytes: u32, build_ids: bool) -> io::Result<Self> {
        let mut attr = attr(
            perf_type_id::PERF_TYPE_SOFTWARE,
            perf_sw_ids::PERF_COUNT_SW_DUMMY as u64,
        );
        attr.sample_type = perf_event_sample_format::PERF_SAMPLE_TIME as u64;
        attr.read_format = TOTAL_TIME_ENABLED;
        attr.set_watermark(1);
        attr.__bindgen_anon_2.wakeup_watermark = wakeup_bytes;
        attr.set_mmap(1);
        attr.set_mmap2(1);
        attr.set_comm(1);
        attr.set_comm_exec(1);
        attr.set_task(1);
        attr.set_sample_id_all(1);
        attr.set_build_id(build_ids.into());
        // The clock of `bpf_ktime_get_ns`, readable from user space, and safe in NMI.
        attr.set_use_clockid(1);
        attr.clockid = libc::CLOCK_MONOTONIC;
        Self::open(&attr, cpu)
    }

    fn open(attr: &perf_event_attr, cpu: u32) -> io::Result<Self> {
        let cpu = libc::c_int::try_from(cpu).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: `attr` is a valid attribute whose `size` says how long it is; pid -1 is every process of the CPU.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                std::ptr::from_ref(attr),
                -1,
                cpu,
                -1,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let fd = libc::c_int::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Has `program` run at each tick.
    ///
    /// # Errors
    ///
    /// Those of `PERF_EVENT_IOC_SET_BPF`.
    pub fn set_program(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: takes a descriptor by value and keeps a reference of its own.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_BPF, program.as_raw_fd()) })
    }

    /// Lets the clock run.
    ///
    /// # Errors
    ///
    /// Those of `PERF_EVENT_IOC_ENABLE`.
    pub fn enable(&self) -> io::Result<()> {
        // SAFETY: takes a flag by value.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), ENABLE, 0) })
    }

    /// How long a ring owner was enabled, nanoseconds. It stands still for good when its CPU went offline, also where that came back.
    ///
    /// # Errors
    ///
    /// Those of `read(2)`.
    pub fn time_enabled(&self) -> io::Result<u64> {
        let mut words = [0; 16];
        let read = rustix::io::read(&self.0, &mut words)?;
        match words.last_chunk() {
            Some(&time) if read == words.len() => Ok(u64::from_ne_bytes(time)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Stops the clock: no sample is taken after this returns.
    ///
    /// # Errors
    ///
    /// Those of `PERF_EVENT_IOC_DISABLE`.
    pub fn disable(&self) -> io::Result<()> {
        // SAFETY: takes a flag by value.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), DISABLE, 0) })
    }
}

// include/uapi/linux/perf_event.h: _IO('$', 0), _IO('$', 1), _IOW('$', 8, __u32)
const ENABLE: libc::Ioctl = 0x2400;
const DISABLE: libc::Ioctl = 0x2401;
const SET_BPF: libc::Ioctl = 0x4004_2408;
const TOTAL_TIME_ENABLED: u64 = 1;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

fn attr(kind: perf_type_id, config: u64) -> perf_event_attr {
    // SAFETY: plain integers, for which zero is "not asked for".
    let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
    attr.type_ = kind as u32;
    attr.config = config;
    attr.size = u32::try_from(size_of::<perf_event_attr>()).unwrap_or(u32::MAX);
    attr
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
