package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"

	"github.com/millracehq/millrace/internal/engine/event"
)

// progressInterval is the interval of progress lines if stderr is not a terminal.
const progressInterval = 5 * time.Second

// showProgress shows a progress bar on a terminal, and lines elsewhere.
func showProgress(what string) (progress func(at, total int64), done func()) {
	if isatty.IsTerminal(os.Stderr.Fd()) {
		bar := progressbar.NewOptions64(1, progressbar.OptionSetWriter(os.Stderr),
			progressbar.OptionSetDescription(what), progressbar.OptionShowCount(), progressbar.OptionClearOnFinish())

		return func(at, total int64) {
			bar.ChangeMax64(max(total, 1))
			_ = bar.Set64(at)
		}, func() { _ = bar.Finish() }
	}

	next := time.Now().Add(progressInterval)

	return func(at, total int64) {
		if time.Now().After(next) {
			next = time.Now().Add(progressInterval)

			fmt.Fprintf(os.Stderr, "%s: %d of %d\n", what, at, total)
		}
	}, func() {}
}

// open opens a file, "-" for standard input, with a progress bar on a terminal.
func open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return watched(os.Stdin, -1), nil
	}

	file, err := os.Open(name)
	if err != nil {
		return nil, event.Errorf(event.Invalid, "%v", err)
	}

	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}

	return watched(file, info.Size()), nil
}

func watched(file *os.File, size int64) io.ReadCloser {
	if !isatty.IsTerminal(os.Stderr.Fd()) || (file == os.Stdin && isatty.IsTerminal(file.Fd())) {
		return file
	}

	reader := progressbar.NewReader(file, progressbar.NewOptions64(size, progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetDescription("publishing"), progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish()))

	return &reader
}
