//! A small checkpoint in memory, so that a mutated copy of it is written in a moment.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use mm_fixtures::{Fill, Fixture, Layout, Model, Options};

/// What lies at a path.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// The bytes, and how large the file is: what is beyond them is a hole.
    File(Vec<u8>, u64),
    Link(PathBuf),
    Folder,
    Pipe,
    Socket,
}

/// Everything below a folder, and the path in it that is inspected.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) kind: &'static str,
    pub(crate) root: String,
    pub(crate) nodes: BTreeMap<String, Node>,
}

/// Pipes and sockets are links to these: making one takes a process of its own.
pub(crate) struct Specials {
    pub(crate) pipe: PathBuf,
    pub(crate) socket: PathBuf,
}

impl Specials {
    pub(crate) fn make(folder: &Path) -> Self {
        let (pipe, socket) = (folder.join("pipe"), folder.join("socket"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is there");
        assert!(made.success(), "mkfifo: {made}");
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("binds"));
        Self { pipe, socket }
    }
}

impl Node {
    pub(crate) fn file(bytes: Vec<u8>) -> Self {
        let size = bytes.len() as u64;
        Self::File(bytes, size)
    }
}

impl Checkpoint {
    fn of(kind: &'static str, root: &str, files: Vec<(&str, Vec<u8>)>) -> Self {
        let nodes = files.into_iter().map(|(path, bytes)| (path.to_owned(), Node::file(bytes))).collect();
        Self { kind, root: root.to_owned(), nodes }
    }

    fn of_fixture(kind: &'static str, model: Model, options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = Options { fill: Fill::Sparse, ..options };
        Fixture::new(model, &options).expect("a fixture").write(folder.path()).expect("writes");
        let mut nodes = BTreeMap::new();
        collect(folder.path(), folder.path(), &mut nodes);
        let root = match options.layout {
            Layout::Single => model.single_file().to_owned(),
            Layout::HfCache | Layout::HfCacheCopies => {
                let (owner, name) = model.repository();
                format!("models--{owner}--{name}")
            }
            Layout::Diffusers => String::new(),
        };
        Self { kind, root, nodes }
    }

    /// The paths of all files.
    pub(crate) fn files(&self) -> Vec<&str> {
        let files = self.nodes.iter().filter(|(_, node)| matches!(node, Node::File(..)));
        files.map(|(path, _)| path.as_str()).collect()
    }

    pub(crate) fn bytes(&mut self, path: &str) -> &mut Vec<u8> {
        match self.nodes.get_mut(path) {
            Some(Node::File(bytes, _)) => bytes,
            other => panic!("{path} is no file but {other:?}"),
        }
    }

    /// Replaces a file's content.
    pub(crate) fn set(&mut self, path: &str, bytes: Vec<u8>) {
        self.nodes.insert(path.to_owned(), Node::file(bytes));
    }

    /// Writes it into an empty folder. What lies below something that is no folder any more is left out.
    pub(crate) fn write(&self, folder: &Path, specials: &Specials) {
        for (path, node) in &self.nodes {
            let at = folder.join(path);
            if let Some(parent) = at.parent()
                && fs::create_dir_all(parent).is_err()
            {
                continue;
            }
            match node {
                Node::File(bytes, size) => {
                    let mut file = File::create(&at).expect("creates");
                    file.write_all(bytes).expect("writes");
                    if *size > bytes.len() as u64 {
                        // Where the file system has no files so large, the file is shorter than it claims.
                        let _ = file.set_len(*size);
                    }
                }
                Node::Link(to) => std::os::unix::fs::symlink(to, &at).expect("links"),
                Node::Folder => fs::create_dir_all(&at).expect("creates"),
                Node::Pipe => fs::hard_link(&specials.pipe, &at).expect("links"),
                Node::Socket => fs::hard_link(&specials.socket, &at).expect("links"),
            }
        }
    }
}

fn collect(root: &Path, folder: &Path, nodes: &mut BTreeMap<String, Node>) {
    for entry in folder.read_dir().expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.strip_prefix(root).expect("below it").to_str().expect("UTF-8").to_owned();
        let kind = path.symlink_metadata().expect("there").file_type();
        if kind.is_dir() {
            collect(root, &path, nodes);
        } else if kind.is_symlink() {
            nodes.insert(name, Node::Link(fs::read_link(&path).expect("a link")));
        } else {
            nodes.insert(name, Node::file(fs::read(&path).expect("reads")));
        }
    }
}

/// The valid checkpoints that are mutated.
pub(crate) fn all() -> Vec<Checkpoint> {
    let small = |layout| Options { layers: Some(2), scale: 1e-9, layout, ..Options::default() };
    let tiny = Options { only: vec!["transformer".into()], ..small(Layout::Diffusers) };
    let only = |component: &str, layout| Options { only: vec![component.into()], ..small(layout) };
    let mut all = vec![
        Checkpoint::of_fixture("shards", Model::ZImageTurbo, Options { shard: Some(40_000), ..tiny.clone() }),
        Checkpoint::of_fixture("pipeline", Model::FluxDev, small(Layout::Diffusers)),
        Checkpoint::of_fixture("variants", Model::Sd35Large, Options { variants: true, ..tiny }),
        Checkpoint::of_fixture("all in one", Model::Sd35Large, small(Layout::Single)),
        Checkpoint::of_fixture("single", Model::Qwen3_4b, small(Layout::Single)),
        Checkpoint::of_fixture("lone model", Model::T5Xxl, small(Layout::Diffusers)),
        Checkpoint::of_fixture("cache with links", Model::Sdxl, only("text_encoder", Layout::HfCache)),
        Checkpoint::of_fixture("cache with copies", Model::Wan14b, only("transformer", Layout::HfCacheCopies)),
    ];
    all.extend(by_hand());
    all
}

/// So small that a random byte is likely one that matters.
fn by_hand() -> Vec<Checkpoint> {
    use crate::gguf::{self, Tensor};
    use crate::header::Header;

    let weights = |names: &[&str]| Header::of_u8(names, 8).file();
    let pipeline = br#"{"_class_name":"P","a":["diffusers","A"],"b":["transformers","B"],"c":[null,null],"x":true}"#;
    let index = br#"{"metadata":{"total_size":24},"weight_map":{"l.0.w":"1.safetensors","l.1.w":"1.safetensors","n":"2.safetensors"}}"#;
    let blocks: Vec<Tensor> = (0..3).map(|block| Tensor::q4_0(&format!("blk.{block}.w"))).collect();
    let (first, second) = (gguf::file(&blocks[..2]), gguf::file(&blocks[2..]));
    vec![
        Checkpoint::of("one file", "m.safetensors", vec![("m.safetensors", weights(&["l.0.w", "l.1.w", "n"]))]),
        Checkpoint::of(
            "index",
            "model.safetensors.index.json",
            vec![
                ("model.safetensors.index.json", index.to_vec()),
                ("1.safetensors", weights(&["l.0.w", "l.1.w"])),
                ("2.safetensors", weights(&["n"])),
            ],
        ),
        Checkpoint::of(
            "small pipeline",
            "",
            vec![
                ("model_index.json", pipeline.to_vec()),
                ("a/config.json", br#"{"_class_name":"A"}"#.to_vec()),
                ("a/diffusion_pytorch_model.safetensors", weights(&["l.0.w", "l.1.w"])),
                ("b/config.json", br#"{"architectures":["B"],"tie_word_embeddings":true}"#.to_vec()),
                ("b/model.safetensors", weights(&["lm_head.weight", "model.embed_tokens.weight"])),
            ],
        ),
        Checkpoint::of("GGUF", "m.gguf", vec![("m.gguf", gguf::file(&blocks))]),
        Checkpoint::of(
            "GGUF in parts",
            "m-00002-of-00002.gguf",
            vec![("m-00001-of-00002.gguf", first), ("m-00002-of-00002.gguf", second)],
        ),
    ]
}
