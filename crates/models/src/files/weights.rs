//! A model on disk: its tensors, mapped; its configuration; what else lies beside them.
use super::folder::{json, shards, split};
use super::gguf::Header;
use super::names::Scheme;
use super::{Dtype, Tensor, gguf, safetensors};
use crate::config::{Config, GenerationConfig};
use crate::error::{ModelError, Result, brief};
use omnidecode_kernels::map::Mapping;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The number format of a tensor as its file says it.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// One that the kernels read.
    Known(Dtype),
    /// Another: an error only if the tensor is asked for.
    Other(String),
}

/// A tensor's place in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub(super) file: usize,
    pub(super) stored: Stored,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Range<usize>,
}

/// The open files of a model. Nothing is read until it is asked for, nothing is copied.
pub struct Weights {
    files: Vec<Mapping>,
    entries: BTreeMap<String, Entry>,
    scheme: Scheme,
    config: Config,
    generation: GenerationConfig,
    /// The folder of `config.json`, for what lies beside it.
    folder: Option<PathBuf>,
    /// Metadata of the (first) GGUF file.
    header: Option<Header>,
}

impl Weights {
    /// Open a model: a folder with `config.json` and safetensors (one file or a sharded index), or with one GGUF; a
    /// `.safetensors` file with its `config.json` beside it; a `.gguf` file, or any of its parts `…-00001-of-0000N.gguf`.
    ///
    /// # Errors
    /// Any [`ModelError`] of files and configurations. Whether every tensor is there is asked by [`Weights::check`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).map_err(|e| ModelError::io(path, &e))?;
        if kind.is_dir() {
            return Self::open_folder(path);
        }
        let mut start = [0; 4];
        let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read(&mut file, &mut start));
        read.map_err(|e| ModelError::io(path, &e))?;
        match path.extension().and_then(|e| e.to_str()) {
            _ if &start == b"GGUF" => Self::open_gguf(path),
            Some("safetensors") => {
                Self::open_safetensors(&[path.to_path_buf()], path.parent().unwrap_or(Path::new(".")))
            }
            Some("gguf") => Self::open_gguf(path),
            Some("bin" | "pt" | "pth" | "ckpt" | "pkl") => Err(ModelError::Pickle { path: path.to_path_buf() }),
            // A zip with a pickle in it, or a bare pickle, by any name.
            _ if start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02") => {
                Err(ModelError::Pickle { path: path.to_path_buf() })
            }
            _ => Err(ModelError::UnknownFormat {
                path: path.to_path_buf(),
                expected: "a .safetensors or .gguf file",
                found: format!("a file that starts with {start:02x?}"),
            }),
        }
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return Self::open_safetensors(&[single], folder);
        }
        let index = folder.join("model.safetensors.index.json");
        if index.is_file() {
            return Self::open_safetensors(&shards(&index, folder)?, folder);
        }
        let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(|e| ModelError::io(folder, &e))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        names.sort();
        let of = |extension: &str| {
            names.iter().filter(|n| n.extension().is_some_and(|e| e == extension)).cloned().collect::<Vec<_>>()
        };
        let (plain, ggufs) = (of("safetensors"), of("gguf"));
        if !plain.is_empty() {
            return Self::open_safetensors(&plain, folder);
        }
        match &ggufs[..] {
            [] => {}
            [first, rest @ ..] if rest.is_empty() || split(first).is_some() => {
                return Self::open_gguf(first);
            }
            several => {
                let found = several
                    .iter()
                    .filter_map(|n| n.file_name())
                    .map(|n| n.to_string_lossy())
                    .collect::<Vec<_>>()
                    .join(", ");
                return Err(ModelError::UnknownFormat {
                    path: folder.to_path_buf(),
                    expected: "one .gguf file (name the file itself to choose)",
                    found: brief(found),
                });
            }
        }
        if let Some(pickle) = ["bin", "pt", "pth", "ckpt"].iter().find_map(|e| of(e).into_iter().next()) {
            return Err(ModelError::Pickle { path: pickle });
        }
        Err(ModelError::UnknownFormat {
            path: folder.to_path_buf(),
            expected: "config.json with model.safetensors, or a .gguf file",
            found: format!("{} other entries", names.len()),
        })
    }

    fn open_safetensors(paths: &[PathBuf], folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut entries = BTreeMap::new();
        for path in paths {
            let file = Mapping::open(path).map_err(|e| ModelError::io(path, &e))?;
            for (name, entry) in safetensors::read(&file)? {
                entries.insert(name, Entry { file: files.len(), ..entry });
            }
            files.push(file);
        }
        let mut config = Config::from_json(&json(&folder.join("config.json"))?)?;
        let path = folder.join("generation_config.json");
        let generation =
            if path.is_file() { GenerationConfig::from_json(&json(&path)?)? } else { GenerationConfig::default() };
        config.add_ends(&generation);
        let scheme = detect(&entries)?;
        Ok(Self { files, entries, scheme, config, generation, folder: Some(folder.to_path_buf()), header: None })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut entries = BTreeMap::new();
        let mut header = None;
        for path in split(path).unwrap_or_else(|| vec![path.to_path_buf()]) {
            let file = Mapping::open(&path).map_err(|e| ModelError::io(&path, &e))?;
            let mut part = gguf::read(&file)?;
            for (name, entry) in std::mem::take(&mut part.tensors) {
                entries.insert(name, Entry { file: files.len(), ..entry });
            }
            files.push(file);
            header.get_or_insert(part);
        }
        let scheme = detect(&entries)?;
        let header = header.unwrap_or_default();
        let config = Config::from_gguf(&header, &files[0], &Tensors { files: &files, entries: &entries })?;
        Ok(Self {
            files,
            entries,
            scheme,
            config,
            generation: GenerationConfig::default(),
            folder: path.parent().map(Path::to_path_buf),
            header: Some(header),
        })
    }

    /// What the decoder computes.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// The author's sampling defaults; all `None` where there are none.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }
    /// Names in the files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
    /// Bytes of all tensors, as stored.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes.len() as u64).sum()
    }
    /// Numbers in all tensors.
    pub fn parameters(&self) -> u64 {
        self.entries.values().map(|entry| entry.shape.iter().fold(1u64, |p, s| p.saturating_mul(*s as u64))).sum()
    }
    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
    /// GGUF metadata and the file that it was read from.
    pub(crate) fn gguf(&self) -> Option<(&Header, &[u8])> {
        Some((self.header.as_ref()?, self.files.first()?))
    }

    /// A tensor by its name in the file.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], or [`ModelError::UnsupportedDtype`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        Tensors { files: &self.files, entries: &self.entries }.get(name)
    }

    /// A tensor was read and will hardly be asked for again: its memory may go to others.
    pub(crate) fn forget(&self, tensor: &Tensor<'_>) {
        if let Cow::Borrowed(bytes) = &tensor.bytes {
            self.files.iter().for_each(|file| file.forget(bytes));
        }
    }
}

impl Config {
    /// The end tokens of a generation configuration end texts too; its bos and pad fill gaps.
    fn add_ends(&mut self, generation: &GenerationConfig) {
        let vocab = self.vocab as u32;
        self.eos.extend(generation.eos.iter().filter(|id| **id < vocab));
        self.eos.sort_unstable();
        self.eos.dedup();
        self.bos = self.bos.or(generation.bos.filter(|id| *id < vocab));
        self.pad = self.pad.or(generation.pad.filter(|id| *id < vocab));
    }
}

struct Tensors<'a> {
    files: &'a [Mapping],
    entries: &'a BTreeMap<String, Entry>,
}

impl<'a> Tensors<'a> {
    fn get(&self, name: &str) -> Result<Tensor<'a>> {
        let (name, entry) = self.entries.get_key_value(name).ok_or_else(|| ModelError::MissingTensor {
            expected: format!("the tensor {}", brief(name)),
            found: format!("{} tensors", self.entries.len()),
        })?;
        let Stored::Known(dtype) = entry.stored else {
            let Stored::Other(found) = &entry.stored else { unreachable!("a format is known or other") };
            return Err(ModelError::UnsupportedDtype { tensor: brief(name), found: found.clone() });
        };
        Ok(Tensor {
            name,
            dtype,
            shape: entry.shape.clone(),
            bytes: Cow::Borrowed(&self.files[entry.file][entry.bytes.clone()]),
        })
    }
}

impl crate::config::Tensors for Tensors<'_> {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| &entry.shape[..])
    }
    fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if self.entries.contains_key(name) { self.get(name)?.to_f32().map(Some) } else { Ok(None) }
    }
}

fn detect(entries: &BTreeMap<String, Entry>) -> Result<Scheme> {
    Scheme::detect(|name| entries.contains_key(name)).ok_or_else(|| ModelError::MissingTensor {
        expected: "a token embedding (embed_tokens.weight, wte.weight or token_embd.weight)".into(),
        found: format!("{} tensors", entries.len()),
    })
}
