//! Two pipelines that share components, under two paths: what they share is there once, and each makes its own picture.
//!
//! One test at a time: the counter of heap bytes is the process's.

mod common;

use candle_core::DType;
use common::{COMPONENTS, folder, machine, options, request, root, weight_bytes};
use mm_cache::{Index, WeightStore};
use mm_candle::Manager;
use mm_diffusion::{Folder, LoadOptions, Unmanaged, ZImage};
use mm_plan::{Policy, Strategy};
use parking_lot::Mutex;
use peak_alloc::PeakAlloc;
use std::{
    fs,
    path::Path,
    sync::{Arc, LazyLock},
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Room for what is neither weights nor activations: headers, thread stacks, logs, the models' skeletons.
const SLACK: u64 = 2 << 20;

/// The demo beside itself, file by file, with one tensor of its transformer turned round: another model that shares its
/// encoder and its VAE with the demo.
struct Twin(tempfile::TempDir);

impl Twin {
    fn new() -> Self {
        let twin = Self(tempfile::tempdir().unwrap());
        copy(&root().join("checkpoints/shapes"), twin.0.path());
        let mut shards: Vec<_> =
            fs::read_dir(twin.0.path().join("transformer")).unwrap().map(|entry| entry.unwrap().path()).collect();
        shards.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
        shards.sort();
        let mut bytes = fs::read(&shards[0]).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = metadata.tensors();
        let (name, about) = tensors.iter().filter(|(_, t)| t.shape.len() == 2).min_by_key(|(name, _)| *name).unwrap();
        let (from, to) = about.data_offsets;
        let size = about.dtype.bitsize() / 8;
        for byte in bytes[8 + header..][from..to].iter_mut().skip(size - 1).step_by(size) {
            *byte ^= 0x80;
        }
        println!("{name} has changed its sign");
        fs::write(&shards[0], bytes).unwrap();
        twin
    }

    fn folder(&self) -> Folder {
        Folder::open(self.0.path()).unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (entry, path) = entry.map(|e| (to.join(e.file_name()), e.path())).unwrap();
        if path.is_dir() {
            fs::create_dir(&entry).unwrap();
            copy(&path, &entry);
        } else {
            fs::copy(&path, &entry).unwrap();
        }
    }
}

fn named(name: &str) -> LoadOptions {
    LoadOptions { name: Some(name.into()), ..options(DType::F32) }
}

fn draw(pipeline: &ZImage) -> Vec<u8> {
    pipeline.generate(&request(2), |_| {}).unwrap().rgb8().unwrap()
}

fn manager(budget: u64, strategy: Strategy) -> Manager {
    let policy = Policy { strategy, ..Policy::default() };
    Manager::cpu_with(machine(budget), policy, Arc::new(WeightStore::new(Index::none()))).unwrap()
}

fn unmanaged(folder: &Folder) -> Vec<u8> {
    draw(&ZImage::load(folder, &options(DType::F32), &Unmanaged).unwrap())
}

static TWIN: LazyLock<Twin> = LazyLock::new(Twin::new);
static PICTURES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| [unmanaged(&folder()), unmanaged(&TWIN.folder())]);

fn bytes(manager: &Manager, name: &str) -> u64 {
    manager.get_component(name).unwrap().description().bytes()
}

#[test]
fn what_is_shared_is_held_once_and_stays_for_the_other() {
    let _one = ONE_AT_A_TIME.lock();
    let [demo, twin] = &*PICTURES;
    assert!(demo != twin, "the two must be told apart by their pictures");
    // Once without counting: buffers of threads stay.
    draw(&ZImage::load(&folder(), &options(DType::F32), &manager(1 << 40, Strategy::Auto)).unwrap());
    let manager = manager(1 << 40, Strategy::NoOffload);
    let nothing = HEAP.current_usage() as u64;
    let a = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
    let b = ZImage::load(&TWIN.folder(), &named("b"), &manager).unwrap();
    // Weights reach memory with the first run; tokenizers and the like are there now.
    let before = HEAP.current_usage() as u64;
    let same: Vec<bool> = COMPONENTS
        .map(|name| {
            let [one, two] = [name.to_owned(), format!("b.{name}")].map(|name| manager.get_component(&name).unwrap());
            Arc::ptr_eq(&one, &two)
        })
        .into();
    assert_eq!(same, [true, false, true], "encoder, transformer, VAE");
    let stats = manager.cache().stats();
    assert_eq!((stats.misses, stats.hits, stats.entries), (4, 2, 4));

    for _ in 0..2 {
        assert!(draw(&a) == *demo, "the first makes another picture");
        assert!(draw(&b) == *twin, "the second makes another picture");
    }
    let (encoder, transformer, vae) =
        (bytes(&manager, "text_encoder"), bytes(&manager, "transformer"), bytes(&manager, "vae"));
    let once = encoder + 2 * transformer + vae;
    assert_eq!(manager.memory().in_use, once, "on the device");
    assert_eq!(manager.memory().peak, manager.plan().unwrap().peak.device);
    // What earlier tests left on threads that end late may go meanwhile.
    let held = (HEAP.current_usage() as u64).saturating_sub(before);
    assert!(
        (once - SLACK..once + SLACK).contains(&held),
        "{held} bytes in the process's own memory, {once} of weights"
    );
    // What the twin's transformer left as it was is read in the demo's file, so that the system's cache holds it once.
    let shared = manager.weights().stats().bytes;
    assert!(shared > encoder / 2, "{shared} bytes of the twin's files are read in the demo's");

    drop(a);
    assert_eq!(manager.component_names(), ["b.text_encoder", "b.transformer", "b.vae"]);
    assert_eq!(manager.cache().stats().entries, 3, "its own transformer is forgotten");
    assert!(draw(&b) == *twin, "with the other gone it makes another picture");
    assert_eq!(manager.memory().in_use, encoder + transformer + vae);
    drop(b);
    assert_eq!((manager.memory().in_use, manager.cache().stats().entries), (0, 0));
    let left = (HEAP.current_usage() as u64).saturating_sub(nothing);
    assert!(left < SLACK, "{left} bytes stay when both are gone");
}

/// The measure above can tell: with managers of their own the two hold everything twice.
#[test]
fn apart_they_hold_everything_twice() {
    let _one = ONE_AT_A_TIME.lock();
    let weights = weight_bytes(DType::F32);
    let before = HEAP.current_usage() as u64;
    let managers = [(); 2].map(|()| manager(1 << 40, Strategy::NoOffload));
    let folders = [folder(), TWIN.folder()];
    let pipelines: Vec<_> =
        folders.iter().zip(&managers).map(|(f, m)| ZImage::load(f, &options(DType::F32), m).unwrap()).collect();
    for (pipeline, expected) in pipelines.iter().zip(&*PICTURES) {
        assert!(draw(pipeline) == *expected);
    }
    assert!(HEAP.current_usage() as u64 - before >= 2 * weights);
}

#[test]
fn they_share_under_every_strategy_and_in_little_memory() {
    let _one = ONE_AT_A_TIME.lock();
    let weights = weight_bytes(DType::F32);
    for (strategy, budget) in [
        (Strategy::Auto, weights * 3 / 10),
        (Strategy::GroupOffload, weights * 3 / 10),
        (Strategy::BlockPin, weights * 6 / 10),
        (Strategy::ModelOffload, weights),
    ] {
        let manager = manager(budget, strategy);
        let pipelines = [
            ZImage::load(&folder(), &options(DType::F32), &manager).unwrap(),
            ZImage::load(&TWIN.folder(), &named("b"), &manager).unwrap(),
        ];
        for (pipeline, expected) in pipelines.iter().zip(&*PICTURES).chain(pipelines.iter().zip(&*PICTURES)) {
            assert!(draw(pipeline) == *expected, "{strategy}: another picture");
        }
        let memory = manager.memory();
        assert_eq!(memory.peak, manager.plan().unwrap().peak.device, "{strategy}");
        assert!(memory.peak <= budget);
    }
}

/// The very same pipeline twice under one name, from two threads at once: one load of each component.
#[test]
fn two_threads_that_load_the_same_share_all_of_it() {
    let _one = ONE_AT_A_TIME.lock();
    let manager = manager(1 << 40, Strategy::Auto);
    let load = || ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
    let pipelines = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(load));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!((manager.cache().stats().misses, manager.component_names().len()), (3, 3));
    for pipeline in pipelines {
        assert!(draw(&pipeline) == PICTURES[0]);
    }
    assert!(manager.component_names().is_empty());
}

/// A name that is taken is told, and nothing of the second load stays.
#[test]
fn what_cannot_be_registered_is_forgotten() {
    let _one = ONE_AT_A_TIME.lock();
    let manager = manager(1 << 40, Strategy::Auto);
    let a = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
    let error = ZImage::load(&TWIN.folder(), &options(DType::F32), &manager).err().expect("the name is taken");
    assert!(error.to_string().contains("transformer"), "{error}");
    assert_eq!((manager.cache().stats().entries, manager.component_names().len()), (3, 3));
    assert!(draw(&a) == PICTURES[0]);
}

/// A copy whose text encoder is configured otherwise.
fn configured() -> Twin {
    let twin = Twin::new();
    let file = twin.0.path().join("text_encoder/config.json");
    let config = fs::read_to_string(&file).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["rms_norm_eps"] = 1e-3.into();
    fs::write(&file, config.to_string()).unwrap();
    twin
}

/// A name is free again when its pipeline is gone, also where another pipeline still shares what it stood for.
#[test]
fn a_name_is_free_when_its_pipeline_is_gone() {
    let _one = ONE_AT_A_TIME.lock();
    let manager = manager(1 << 40, Strategy::Auto);
    let a = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
    let b = ZImage::load(&TWIN.folder(), &named("b"), &manager).unwrap();
    drop(a);
    let configured = configured();
    let c = ZImage::load(&configured.folder(), &options(DType::F32), &manager).unwrap();
    let [b_vae, c_vae] = ["b.vae", "vae"].map(|name| manager.get_component(name).unwrap());
    assert!(Arc::ptr_eq(&b_vae, &c_vae));
    let [b_encoder, c_encoder] = ["b.text_encoder", "text_encoder"].map(|name| manager.get_component(name).unwrap());
    assert!(!Arc::ptr_eq(&b_encoder, &c_encoder));
    assert!(draw(&b) == PICTURES[1]);
    drop(b);
    draw(&c);
}

/// Another compute dtype, or another configuration, is another component.
#[test]
fn what_is_computed_otherwise_is_not_shared() {
    let _one = ONE_AT_A_TIME.lock();
    let manager = manager(1 << 40, Strategy::Auto);
    let _a = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
    let _b = ZImage::load(&folder(), &LoadOptions { dtype: DType::BF16, ..named("b") }, &manager).unwrap();
    let configured = configured();
    let _c = ZImage::load(&configured.folder(), &named("c"), &manager).unwrap();
    let [a, b, c] = ["text_encoder", "b.text_encoder", "c.text_encoder"].map(|n| manager.get_component(n).unwrap());
    assert!(!Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c) && !Arc::ptr_eq(&b, &c));
    let [a, b, c] = ["vae", "b.vae", "c.vae"].map(|name| manager.get_component(name).unwrap());
    assert!(Arc::ptr_eq(&a, &b) && Arc::ptr_eq(&a, &c), "a VAE is computed in f32 always");
}
