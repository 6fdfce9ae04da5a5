// Command imagetest runs the container image as production does: read-only, without
// privileges, and in a network namespace of its own, against a real Postgres.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// timeout bounds the whole test. cleanTimeout bounds each step of cleaning up.
const (
	timeout      = 5 * time.Minute
	cleanTimeout = 30 * time.Second
)

func main() {
	var t test

	flag.StringVar(&t.archive, "image", "", "file with the image")
	flag.StringVar(&t.version, "version", "", "version that the image must report")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, timeout)

	t.name = fmt.Sprintf("mrimage%d", os.Getpid()) // a network interface has at most 15 bytes
	err := t.run(ctx)

	for _, undo := range t.undo {
		err = errors.Join(err, undo())
	}

	cancel()
	stop()

	if err != nil {
		fmt.Fprintln(os.Stderr, "imagetest:", err)
		os.Exit(1)
	}

	fmt.Println("ok")
}

// test is a run of the test.
type test struct {
	archive, version string
	// name is the name of the database, the network namespace and the container.
	name string
	// undo holds the clean-up functions, newest first.
	undo []func() error
}

// step is a part of the test.
type step struct {
	name string
	do   func(context.Context) error
}

func (t *test) run(ctx context.Context) error {
	c := &container{test: t}

	for _, s := range []step{
		{"load the image", c.load},
		{"look at its files and settings", c.inspect},
		{"create a database", c.createDatabase},
		{"create a network namespace", c.createNetwork},
		{"start it, read-only and without privileges", c.start},
		{"probe /livez and /readyz, scrape /metrics", c.probe},
		{"check that nothing else is reachable", c.closed},
		{"run its health check", c.healthcheck},
		{"publish messages and see them applied", c.publish},
		{"try to write to its root", c.write},
		{"stop it with SIGTERM and see it drain", c.stop},
	} {
		began := time.Now()

		if err := s.do(ctx); err != nil {
			return c.explain(fmt.Errorf("%s: %w", s.name, err))
		}

		fmt.Printf("%5.1f s  %s\n", time.Since(began).Seconds(), s.name)
	}

	return nil
}

// later adds a command that cleans up, whatever the outcome of the test.
func (t *test) later(program string, args ...string) {
	t.cleanUp(func(ctx context.Context) error {
		_, err := run(ctx, program, args...)

		return err
	})
}

func (t *test) cleanUp(fn func(context.Context) error) {
	undo := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
		defer cancel()

		return fn(ctx)
	}

	t.undo = append([]func() error{undo}, t.undo...)
}

// run returns what a command prints. It is not interrupted by Ctrl-C, which ends ctx.
func run(ctx context.Context, program string, args ...string) (string, error) {
	var stderr strings.Builder

	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = cleanTimeout

	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, out, stderr.String())
	}

	return strings.TrimSpace(string(out)), err
}

// eventually polls until fn succeeds, and returns its last error if it does not in time.
func eventually(ctx context.Context, within time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()

	var last error

	for ctx.Err() == nil {
		err := fn(ctx)
		if err == nil {
			return nil
		}

		if ctx.Err() == nil {
			last = err // more useful than a timeout error
		}

		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}

	return errors.Join(last, ctx.Err())
}
