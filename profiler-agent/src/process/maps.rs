//! /proc/PID/maps, proc_pid_maps(5).

use super::{Backing, Mapping, file::Identity};
use crate::procfs;

/// Most bytes that are read: some 600,000 mappings, ten times `vm.max_map_count`.
const MAX_LEN: u64 = 64 << 20;

/// One line: `start-end perms offset major:minor inode path`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MapsLine {
    start: u64,
    end: u64,
    executable: bool,
    offset: u64,
    major: u32,
    minor: u32,
    inode: u64,
    path: String,
}

/// Every mapping of a process; none when it is gone or the kernel refuses.
pub(super) fn read(pid: u32) -> Vec<MapsLine> {
    let maps = procfs::read(format!("/proc/{pid}/maps"), MAX_LEN).unwrap_or_default();
    lines(&maps).collect()
}

/// The mappings that hold code, of what `/proc/PID/maps` says.
pub fn executable(maps: &[u8]) -> impl Iterator<Item = Mapping> {
    lines(maps).filter_map(MapsLine::into_mapping)
}

fn lines(maps: &[u8]) -> impl Iterator<Item = MapsLine> {
    maps.split(|&byte| byte == b'\n').filter_map(parse)
}

/// The range of the mapping with this name.
pub(super) fn find(pid: u32, name: &str) -> Option<(u64, u64)> {
    read(pid)
        .into_iter()
        .find(|line| line.path == name)
        .map(|line| (line.start, line.end))
}

fn parse(line: &[u8]) -> Option<MapsLine> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = fields.next()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?;
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    Some(MapsLine {
        start: hex(start)?,
        end: hex(end)?,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        offset: hex(offset)?,
        major: u32::from_str_radix(major, 16).ok()?,
        minor: u32::from_str_radix(minor, 16).ok()?,
        inode: inode.parse().ok()?,
        // Padded with spaces to a column; the name itself may hold some.
        path: fields
            .next()
            .unwrap_or_default()
            .trim_start_matches(' ')
            .to_owned(),
    })
}

impl MapsLine {
    /// The mapping, if it holds code.
    pub(super) fn into_mapping(self) -> Option<Mapping> {
        let Self {
            start,
            end,
            executable,
            offset,
            major,
            minor,
            inode,
            path,
        } = self;
        let backing = match &*path {
            "[vdso]" => Backing::Vdso,
            "[vsyscall]" => return None,
            _ if inode == 0 => Backing::Anonymous,
            path => Backing::File {
                path: path.into(),
                identity: Identity::inode(major, minor, inode, 0),
            },
        };
        executable.then_some(Mapping {
            start,
            end,
            file_offset: offset,
            backing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_as_the_kernel_writes_them() {
        let line = b"7f0a8b400000-7f0a8b421000 r-xp 0001f000 fe:00 1835021                    /usr/lib/a b.so (deleted)";
        assert_eq!(
            parse(line),
            Some(MapsLine {
                start: 0x7f0a_8b40_0000,
                end: 0x7f0a_8b42_1000,
                executable: true,
                offset: 0x1f000,
                major: 0xfe,
                minor: 0,
                inode: 1_835_021,
                path: "/usr/lib/a b.so (deleted)".into()
            })
        );
        assert_eq!(parse(b"7ffd-8000 rw-p 00000000 00:00 0 ").unwrap().path, "");
        for bad in [
            &b""[..],
            b"x",
            b"1-2",
            b"1-2 r-xp",
            b"g-h r-xp 0 0:0 0",
            b"\xff\xfe",
        ] {
            assert_eq!(parse(bad), None);
        }
    }
}
