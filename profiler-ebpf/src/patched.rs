//! Constants that the agent writes into the object before it is loaded.

/// A value that is not known before the object is loaded.
///
/// What stands in the source is a mark, different for each: LLVM takes two read-only constants of one value for one, and a plain
/// `&0` of some look-up would be patched along with a value that begins as 0 (it happened).
#[repr(transparent)]
pub struct Patched<T>(T);

impl Patched<u32> {
    /// Not patched yet; `number` is its own.
    pub const fn new(number: u32) -> Self {
        Self(0xa7a7_0000 | number)
    }
}

impl Patched<u64> {
    /// Not patched yet; `number` is its own.
    pub const fn wide(number: u64) -> Self {
        Self(0xa7a7_a7a7_a7a7_0000 | number)
    }
}

impl Patched<[u64; 2]> {
    /// Not patched yet; `number` is its own, of those that [`Patched::wide`] has too.
    pub const fn words(number: u64) -> Self {
        Self([0xa7a7_a7a7_a7a7_0000 | number; 2])
    }
}

impl<T: Copy> Patched<T> {
    /// The value.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: volatile, because LLVM knows what stands in the source.
        unsafe { core::ptr::from_ref(&self.0).read_volatile() }
    }
}
