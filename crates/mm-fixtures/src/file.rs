//! One safetensors file: its header, its length, its data in chunks.

use crate::{
    Error, Fill, Tensor,
    error::at,
    fill::{Buffer, Filler, Job},
};
use safetensors::tensor::{Metadata, TensorInfo};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Writes one safetensors file and returns its length in bytes. The folder must be there. The file gets its name when
/// it is whole. Random values depend on `seed` and each tensor's name alone.
pub fn write_file(path: &Path, tensors: &[Tensor], fill: Fill, seed: u64) -> Result<u64, Error> {
    whole(path, |partial| write(partial, path, tensors, fill, seed))
}

/// Writes a file by `write`, given the name that it has until it is whole.
pub(crate) fn whole(path: &Path, write: impl FnOnce(&Path) -> Result<u64, Error>) -> Result<u64, Error> {
    let partial = partial(path);
    let outcome = write(&partial);
    match outcome.and_then(|bytes| at(path, fs::rename(&partial, path)).map(|()| bytes)) {
        Ok(bytes) => Ok(bytes),
        Err(error) => {
            // The first error is the one to tell.
            let _ = fs::remove_file(&partial);
            Err(error)
        }
    }
}

/// Writes a small file; it gets its name when it is whole.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<u64, Error> {
    let partial = partial(path);
    at(path, fs::write(&partial, bytes))?;
    at(path, fs::rename(&partial, path))?;
    Ok(bytes.len() as u64)
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn write(partial: &Path, path: &Path, tensors: &[Tensor], fill: Fill, seed: u64) -> Result<u64, Error> {
    let tensors = in_file_order(tensors);
    let (header, starts) = header(path, &tensors)?;
    let offset = header.len() as u64;
    let data: u64 = tensors.iter().filter_map(|t| t.bytes()).sum();
    let length = offset.checked_add(data).ok_or_else(|| too_long(path))?;

    let mut file = at(path, File::create(partial))?;
    at(path, file.write_all(&header))?;
    at(path, file.set_len(length))?;
    if fill != Fill::Sparse {
        write_data(partial, path, &tensors, &starts, offset, fill, seed)?;
    }
    Ok(length)
}

/// As the safetensors library orders them: the widest dtype first, then by name.
fn in_file_order(tensors: &[Tensor]) -> Vec<&Tensor> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    sorted
}

fn too_long(path: &Path) -> Error {
    Error::Tensors { path: path.into(), why: "the sizes overflow; give smaller shapes".into() }
}

/// The header, padded as the format asks for, and where each tensor starts after it.
fn header(path: &Path, tensors: &[&Tensor]) -> Result<(Vec<u8>, Vec<u64>), Error> {
    let wrong = |why: String| Error::Tensors { path: path.into(), why };
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(wrong(format!("{} is there twice", pair[0].name)));
    }
    let mut starts = Vec::with_capacity(tensors.len());
    let mut infos = Vec::with_capacity(tensors.len());
    let mut end = 0usize;
    for tensor in tensors {
        let bytes = tensor.bytes().and_then(|b| usize::try_from(b).ok());
        let next = bytes.and_then(|b| end.checked_add(b));
        let next = next.ok_or_else(|| wrong(format!("{}: its size overflows; give a smaller shape", tensor.name)))?;
        starts.push(end as u64);
        let info = TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (end, next) };
        infos.push((tensor.name.clone(), info));
        end = next;
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).map_err(|e| wrong(e.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| wrong(e.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok((header, starts))
}

/// Every thread takes the next piece, makes it and writes it where it belongs.
fn write_data(
    partial: &Path,
    path: &Path,
    tensors: &[&Tensor],
    starts: &[u64],
    offset: u64,
    fill: Fill,
    seed: u64,
) -> Result<(), Error> {
    let filler = Filler::new(fill, seed);
    let jobs: Vec<_> =
        tensors.iter().enumerate().flat_map(|(index, t)| Job::all(t).map(move |job| (index, job))).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), Error> {
        let mut file = at(path, File::options().write(true).open(partial))?;
        let mut buffer = Buffer::default();
        while let Some((index, job)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            filler.fill(tensors[*index], job, &mut buffer);
            let start = offset + starts[*index] + job.start();
            at(path, file.seek(SeekFrom::Start(start)))?;
            at(path, file.write_all(&buffer.bytes))?;
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(jobs.len().max(1));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let outcomes = workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        // Every worker is waited for before the first error is told.
        outcomes.collect::<Vec<_>>().into_iter().collect()
    })
}
