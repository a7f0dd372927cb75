//! File tables: `struct files_struct`, `fdtable`, `file`.
//!
//! A table is freed after an RCU grace period (fs/file.c, `free_fdtable_rcu`), and so are files;
//! iterator programs run as RCU readers (kernel/bpf/bpf_iter.c, `bpf_iter_run_prog`). A
//! files_struct is not: code that has followed `task->files` checks that it is still the task's.

use core::ffi::c_void;

use collector_common::field;

use super::{Task, read};

/// `struct files_struct`
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Files(pub *const c_void);

/// `struct fdtable`
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct FileTable(*const c_void);

impl Task {
    /// `task->files`: null for a task that has closed its files on its way out.
    #[inline(always)]
    pub fn files(self) -> Files {
        Files(load64!(self.0, field::TASK_FILES) as *const c_void)
    }
}

impl Files {
    #[inline(always)]
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }
    #[inline(always)]
    pub fn table(self) -> FileTable {
        FileTable(load64!(self.0, field::FILES_TABLE) as *const c_void)
    }
}

impl FileTable {
    /// Descriptors that there is room for: a multiple of 64 (fs/file.c, `alloc_fdtable`).
    #[inline(always)]
    pub fn max(self) -> u32 {
        load32!(self.0, field::TABLE_MAX)
    }
    /// Address of the array of pointers to files.
    #[inline(always)]
    pub fn files(self) -> u64 {
        load64!(self.0, field::TABLE_FILES)
    }
    /// Address of the bitmap of descriptors in use, those reserved for files to come included.
    #[inline(always)]
    pub fn open(self) -> u64 {
        load64!(self.0, field::TABLE_OPEN)
    }
}

/// `file->f_op` of a file by its address. It identifies the kind of file.
#[inline(always)]
pub fn file_operations(file: u64) -> u64 {
    read(address!(file, field::FILE_OPERATIONS))
}
