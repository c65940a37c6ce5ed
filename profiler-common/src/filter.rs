//! Whose samples the kernel programs take.

/// It is written into the programs before they are loaded, so that they hold one look and no more.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Everybody's.
    Everything = 0,
    /// Those of the processes in a set, which their children join.
    Processes = 1,
    /// Those of processes of one name, which is that of their main thread.
    Name = 2,
    /// Those of threads in a control group, or in one below it.
    Group = 3,
}
