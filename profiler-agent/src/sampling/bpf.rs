//! The calls of `bpf(2)` that aya does not offer.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper for these calls")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// Puts a descriptor into a slot of a map of descriptors: a perf event, or another map. aya's own type for arrays of perf events
/// opens the events itself, with a wake-up for every record.
///
/// # Errors
///
/// Those of `BPF_MAP_UPDATE_ELEM`.
pub fn set_descriptor(map: BorrowedFd<'_>, slot: u32, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let fd = descriptor.as_raw_fd();
    // SAFETY: plain integers and addresses, for which zero is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: every field of this member of the union is an integer.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX);
    element.key = std::ptr::from_ref(&slot).expose_provenance() as u64;
    element.__bindgen_anon_1.value = std::ptr::from_ref(&fd).expose_provenance() as u64;
    // SAFETY: key and value live until the call returns, and are as long as those of the map.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_UPDATE_ELEM as libc::c_int,
            std::ptr::from_mut(&mut attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
