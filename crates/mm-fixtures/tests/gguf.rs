//! GGUF files: names, types and shapes as converters give them, and blocks that hold the values.

use half::f16;
use mm_fixtures::{Error, Fill, Fixture, Layout, Model, Options, Quantization, Tensor, write_file, write_gguf};
use mm_header::{GgufEntry, read_gguf};
use safetensors::{Dtype, SafeTensors};
use std::{
    fs::{self, File},
    path::Path,
};

fn entries(file: &Path) -> Vec<GgufEntry> {
    read_gguf(File::open(file).unwrap(), fs::metadata(file).unwrap().len()).unwrap()
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// As the format's documents say, block by block.
fn values(kind: &str, bytes: &[u8]) -> Vec<f32> {
    match kind {
        "q8_0" => bytes.chunks(34).flat_map(|b| b[2..].iter().map(|q| half(b) * f32::from(*q as i8))).collect(),
        "q4_0" => {
            let low = |b: &[u8]| b[2..].iter().map(|q| half(b) * (f32::from(q & 15) - 8.0)).collect::<Vec<_>>();
            let high = |b: &[u8]| b[2..].iter().map(|q| half(b) * (f32::from(q >> 4) - 8.0)).collect::<Vec<_>>();
            bytes.chunks(18).flat_map(|b| [low(b), high(b)].concat()).collect()
        }
        "q4_k" => bytes.chunks(144).flat_map(q4_k).collect(),
        other => panic!("{other}"),
    }
}

fn q4_k(b: &[u8]) -> Vec<f32> {
    let (scale, minimum, packed, levels) = (half(b), half(&b[2..]), &b[4..16], &b[16..]);
    let six = |part: usize| match part {
        0..4 => (packed[part] & 63, packed[part + 4] & 63),
        _ => (packed[part + 4] & 15 | (packed[part - 4] >> 6) << 4, packed[part + 4] >> 4 | (packed[part] >> 6) << 4),
    };
    let value = |i: usize| {
        let (chunk, within) = (i / 64, i % 64);
        let byte = levels[32 * chunk + within % 32];
        let level = if within < 32 { byte & 15 } else { byte >> 4 };
        let (step, least) = six(i / 32);
        scale * f32::from(step) * f32::from(level) - minimum * f32::from(least)
    };
    (0..256).map(value).collect()
}

#[test]
fn blocks_hold_the_values_to_within_their_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [
        Tensor::new("a.weight", [6, 512], Dtype::F32),
        Tensor::new("b.bias", [512], Dtype::F32),
        Tensor::new("c.weight", [3, 64], Dtype::F32),
        Tensor::new("d.weight", [3, 5], Dtype::F32),
    ];
    let plain = folder.path().join("plain.safetensors");
    write_file(&plain, &tensors, Fill::Random, 7).unwrap();
    let plain = fs::read(plain).unwrap();
    let plain = SafeTensors::deserialize(&plain).unwrap();
    for (quantization, of_64, most) in
        [(Quantization::Q8_0, "q8_0", 0.01), (Quantization::Q4_0, "q4_0", 0.12), (Quantization::Q4K, "q8_0", 0.1)]
    {
        let file = folder.path().join(quantization.name());
        let length = write_gguf(&file, &tensors, quantization, Fill::Random, 7).unwrap();
        let bytes = fs::read(&file).unwrap();
        assert_eq!(bytes.len() as u64, length);
        let found = entries(&file);
        let kinds: Vec<_> = found.iter().map(|entry| (entry.name.as_str(), entry.kind.name())).collect();
        assert_eq!(
            kinds,
            [("a.weight", quantization.name()), ("b.bias", "f32"), ("c.weight", of_64), ("d.weight", "f16")]
        );
        for entry in &found {
            let exact = plain.tensor(&entry.name).unwrap();
            assert_eq!(entry.shape, exact.shape());
            let stored = &bytes[entry.range.start as usize..entry.range.end as usize];
            let exact: Vec<f32> = exact.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let held: Vec<f32> = match entry.kind.name() {
                "f32" => stored.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                "f16" => stored.chunks(2).map(half).collect(),
                kind => values(kind, stored),
            };
            assert_eq!(held.len(), exact.len());
            let square = |all: &mut dyn Iterator<Item = f32>| all.map(|x| x * x).sum::<f32>();
            let error = square(&mut held.iter().zip(&exact).map(|(a, b)| a - b)) / square(&mut exact.iter().copied());
            println!("{} as {}: {:.1e}", entry.name, entry.kind.name(), error.sqrt());
            assert!(error.sqrt() < if entry.name == "a.weight" { most } else { 0.12 });
        }
    }
}

#[test]
fn a_pipeline_has_gguf_files_where_they_are_usual() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        Options { layers: Some(1), scale: 1.0 / 4096.0, gguf: Some(Quantization::Q4_0), ..Options::default() };
    let fixture = Fixture::new(Model::FluxDev, &options).unwrap();
    fixture.write(folder.path()).unwrap();
    let names = |file: &str| {
        let entries = entries(&folder.path().join(file));
        entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    let flux = names("transformer/flux-dev-Q4_0.gguf");
    for name in ["img_in.weight", "double_blocks.0.img_attn.qkv.weight", "single_blocks.1.norm.key_norm.scale"] {
        assert!(flux.iter().any(|found| found == name), "{name}");
    }
    let t5 = names("text_encoder_2/flux-dev-Q4_0.gguf");
    for name in
        ["token_embd.weight", "enc.blk.0.attn_rel_b.weight", "enc.blk.23.ffn_gate.weight", "enc.output_norm.weight"]
    {
        assert!(t5.iter().any(|found| found == name), "{name}");
    }
    assert!(folder.path().join("text_encoder/model.safetensors").is_file());
    let t5 = fixture.components.iter().find(|component| component.name == "text_encoder_2").unwrap();
    assert!(t5.tensors.iter().filter(|t| t.block.is_some()).all(|t| t.name.starts_with("enc.blk.")));
}

#[test]
fn what_has_no_place_for_it_is_refused() {
    let single = Options { layout: Layout::Single, gguf: Some(Quantization::Q8_0), ..Options::default() };
    let error = Fixture::new(Model::FluxDev, &single).unwrap_err();
    assert!(matches!(&error, Error::Option { flag: "--gguf", .. }), "{error}");
    assert_eq!("q5_0".parse::<Quantization>().unwrap_err().to_string(), "--gguf q5_0: give one of q4_0, q8_0, q4_k");
}
