//! What is read and what is allocated: by what is there, never by what a number claims.

use std::io::{self, Read};

use mm_header::{HeaderError, read};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Counts what is read through it.
struct Counted<R>(R, u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(into)?;
        self.1 += read as u64;
        Ok(read)
    }
}

/// Reads a header that is no good; bytes read of it, and bytes allocated at one time.
fn refused(from: impl Read, size: u64) -> (HeaderError, u64, usize) {
    let mut from = Counted(from, 0);
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let error = read(&mut from, size).expect_err("a bad header");
    (error, from.1, ALLOCATOR.peak_usage().saturating_sub(before))
}

/// One test, as others would allocate at the same time.
#[test]
fn memory_goes_by_what_is_there() {
    const SMALL: usize = 64 << 10;

    // The largest header there may be, all of it a hole.
    let (error, read_of_it, taken) = refused(24_999_999u64.to_le_bytes().chain(io::repeat(0)), 1 << 40);
    assert!(matches!(error, HeaderError::NotAHeader(_)), "{error:?}");
    assert!(read_of_it < SMALL as u64 && taken < SMALL, "{read_of_it} read, {taken} taken");

    // It claims to be as large, and the file too, and there is nothing.
    let (error, _, taken) = refused(&25_000_000u64.to_le_bytes()[..], u64::MAX);
    assert!(matches!(error, HeaderError::Io(_)), "{error:?}");
    assert!(taken < SMALL, "{taken} taken");

    // One shape that goes on to the header's end: eight bytes for every two, if it were taken as it comes.
    let shape = format!(r#"{{"a":{{"shape":[{}"#, "1,".repeat(10_000_000));
    let header = [&(shape.len() as u64).to_le_bytes(), shape.as_bytes()].concat();
    let (error, read_of_it, taken) = refused(&header[..], header.len() as u64);
    assert!(error.to_string().contains("more than 64 dimensions"), "{error}");
    assert!(read_of_it < SMALL as u64 && taken < SMALL, "{read_of_it} read, {taken} taken");

    // As much as a header can take: tensors of short names and long shapes, and the last of them lies.
    let sides = format!("[{}1]", "1,".repeat(63));
    let entry = |n: usize| format!(r#""{n}":{{"dtype":"U8","shape":{sides},"data_offsets":[{n},{}]}}"#, n + 1);
    let entries: Vec<String> = (0..20_000).map(entry).collect();
    let json = format!("{{{}}}", entries.join(","));
    let header = [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    let (error, read_of_it, taken) = refused(&header[..], header.len() as u64 + 20_001);
    assert!(error.to_string().contains("belong to none"), "{error}");
    assert_eq!(read_of_it, header.len() as u64);
    assert!(taken < 6 * header.len(), "{taken} taken for {}", header.len());
}
