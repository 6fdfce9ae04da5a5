package main

import (
	"archive/tar"
	"archive/zip"
	"cmp"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// file is one file of an archive. Archives contain their files in order, with the
// release's time, and without the names and ids of their owners.
type file struct {
	path, source string
	mode         fs.FileMode
}

func sorted(files []file) []file {
	return slices.SortedFunc(slices.Values(files), func(a, b file) int { return cmp.Compare(a.path, b.path) })
}

func (r *release) tar(name string, files []file) (string, error) {
	return r.archive(name+".tar.gz", func(out io.Writer) error {
		compressed, err := gzip.NewWriterLevel(out, gzip.BestCompression)
		if err != nil {
			return err
		}

		w := tar.NewWriter(compressed)

		for _, f := range sorted(files) {
			info, err := os.Stat(f.source)
			if err != nil {
				return err
			}

			header := &tar.Header{Name: f.path, Mode: int64(f.mode), Size: info.Size(), ModTime: r.at, Format: tar.FormatPAX}
			if err := errors.Join(w.WriteHeader(header), appendTo(w, f.source)); err != nil {
				return err
			}
		}

		return errors.Join(w.Close(), compressed.Close())
	})
}

func (r *release) zip(name string, files []file) (string, error) {
	return r.archive(name+".zip", func(out io.Writer) error {
		w := zip.NewWriter(out)

		for _, f := range sorted(files) {
			header := &zip.FileHeader{Name: f.path, Method: zip.Deflate, Modified: r.at}
			header.SetMode(f.mode)

			entry, err := w.CreateHeader(header)
			if err != nil {
				return err
			}

			if err := appendTo(entry, f.source); err != nil {
				return err
			}
		}

		return w.Close()
	})
}

// archive creates a file in the directory for archives.
func (r *release) archive(name string, write func(io.Writer) error) (path string, err error) {
	path = filepath.Join(r.out, name)

	out, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, out.Close()) }()

	return path, write(out)
}

func appendTo(w io.Writer, source string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // it was only read

	_, err = io.Copy(w, in)

	return err
}
