// Package mutate proves the proof: it puts bugs into the service, one at a time, and shows
// that the trials find each. The bugs are edits that `go build -overlay` applies, so the
// source does not change.
package mutate

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/cmd/proof/crash"
	"github.com/millracehq/millrace/cmd/proof/server"
)

// Overlay writes the edited files of a mutation to dir, and returns the path of the file for
// the flag -overlay.
func (m Mutation) Overlay(root, dir string) (string, error) {
	content := map[string]string{}

	for _, e := range m.Edits {
		path := filepath.Join(root, e.File)

		if _, read := content[path]; !read {
			source, err := os.ReadFile(filepath.Clean(path))
			if err != nil {
				return "", err
			}

			content[path] = string(source)
		}

		if n := strings.Count(content[path], e.Old); n != 1 {
			return "", fmt.Errorf("the text that a mutation replaces occurs %d times in %s, expected once; adapt the mutation to the source: %q", n, e.File, e.Old)
		}

		content[path] = strings.Replace(content[path], e.Old, e.New, 1)
	}

	overlay := struct{ Replace map[string]string }{map[string]string{}}

	for path, text := range content {
		edited := filepath.Join(dir, strings.ReplaceAll(filepath.ToSlash(strings.TrimPrefix(path, root)), "/", "_"))
		overlay.Replace[path] = edited

		if err := os.WriteFile(edited, []byte(text), 0o600); err != nil {
			return "", err
		}
	}

	data, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}

	path := filepath.Join(dir, "overlay.json")

	return path, os.WriteFile(path, data, 0o600)
}

// result says what found a mutation.
type result struct {
	Mutation

	by, found string
	after     time.Duration
}

// parallel is how many trials run at a time.
const parallel = 3

// Command runs all mutations.
func Command(ctx context.Context, args []string) (err error) {
	var only, report string

	flags := flag.NewFlagSet("proof mutations", flag.ContinueOnError)
	flags.StringVar(&only, "only", "", "names of mutations, separated by commas (default all)")
	flags.StringVar(&report, "report", "", "write the results to this file, as Markdown")

	if err := flags.Parse(args); err != nil {
		return err
	}

	var selected []Mutation

	for _, m := range Mutations {
		if only == "" || slices.Contains(strings.Split(only, ","), m.Name) {
			selected = append(selected, m)
		}
	}

	if len(selected) == 0 {
		return fmt.Errorf("-only: is %q, expected names of mutations", only)
	}

	s, err := newSession(ctx)
	if err != nil {
		return err
	}

	defer func() { err = errors.Join(err, s.close(err != nil)) }()

	if err := s.sound(ctx, selected); err != nil {
		return err
	}

	return s.all(ctx, selected, report)
}

// session has the servers and directories of a run.
type session struct {
	root, dir string
	lab       *crash.Lab
	original  string
}

func newSession(ctx context.Context) (s *session, err error) {
	s = &session{}

	if s.root, err = server.Root(); err != nil {
		return nil, err
	}

	if s.dir, err = server.NewDir(); err != nil {
		return nil, err
	}

	s.original = filepath.Join(s.dir, "original")
	if err = crash.Build(ctx, s.original); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}

	if s.lab, err = crash.NewLab(ctx, s.original); err != nil {
		err = errors.Join(err, s.close(false))
	}

	return s, err
}

// close ends the servers. It keeps the logs if keep is true.
func (s *session) close(keep bool) error {
	return errors.Join(s.lab.Close(keep), os.RemoveAll(s.dir))
}

// sound checks that the service without a bug passes all trials: one that always fails
// would find everything.
func (s *session) sound(ctx context.Context, list []Mutation) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)

	started := map[string]bool{}

	for _, m := range list {
		for _, t := range m.Trials {
			name := fmt.Sprintf("%s %s %d", t.Broker, t.Name(), t.Pass)
			if started[name] {
				continue
			}

			started[name] = true

			group.Go(func() error {
				if err := s.fails(ctx, s.original, t); err != nil {
					return fmt.Errorf("the service without a bug fails a trial: %s: %w", name, err)
				}

				return nil
			})
		}
	}

	if err := group.Wait(); err != nil {
		return err
	}

	fmt.Printf("ok    the service without a bug passes %d trials\n", len(started))

	return nil
}

func (s *session) all(ctx context.Context, list []Mutation, report string) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)

	results := make([]result, len(list))

	for i, m := range list {
		group.Go(func() (err error) {
			if results[i], err = s.find(ctx, m); err == nil {
				results[i].say()
			}

			return err
		})
	}

	if err := group.Wait(); err != nil {
		return err
	}

	var survived []string

	for _, r := range results {
		if r.by == "" {
			survived = append(survived, r.Name)
		}
	}

	if report != "" {
		if err := os.WriteFile(filepath.Clean(report), []byte(describe(results)), 0o600); err != nil {
			return err
		}
	}

	if len(survived) > 0 {
		return fmt.Errorf("%d of %d mutations survived: %s", len(survived), len(list), strings.Join(survived, ", "))
	}

	return nil
}

func (r result) say() {
	if r.by == "" {
		fmt.Printf("FAIL  %-32s survived\n", r.Name)
	} else {
		fmt.Printf("ok    %-32s %5.1fs  %s: %s\n", r.Name, r.after.Seconds(), r.by, r.found)
	}
}

// fails runs a trial, and returns an error if it finds something. A point that a process
// does not reach is no finding.
func (s *session) fails(ctx context.Context, program string, t crash.Trial) error {
	t, err := s.lab.Run(ctx, program, t)
	if err == nil && len(t.Wrong) > 0 {
		err = t.Verdict()
	}

	return err
}

// find builds a mutation and runs its trials until one finds it.
func (s *session) find(ctx context.Context, m Mutation) (r result, err error) {
	r.Mutation = m

	dir, err := os.MkdirTemp(s.dir, "mutation-*")
	if err != nil {
		return r, err
	}

	overlay, err := m.Overlay(s.root, dir)
	if err != nil {
		return r, err
	}

	program := filepath.Join(dir, "millrace")
	if err := crash.Build(ctx, program, "-overlay", overlay); err != nil {
		return r, fmt.Errorf("%s: %w", m.Name, err)
	}

	defer func() { _ = os.Remove(program) }()

	began := time.Now()

	for _, t := range m.Trials {
		err := s.fails(ctx, program, t)
		if ctx.Err() != nil {
			return r, ctx.Err()
		}

		if err != nil {
			r.by, r.found, r.after = strings.TrimSpace(t.Broker+" "+t.Name()), err.Error(), time.Since(began)

			return r, nil
		}
	}

	for _, t := range m.Tests {
		if name := s.test(ctx, overlay, t); name != "" {
			r.by, r.found, r.after = "go test "+t[0], name, time.Since(began)

			return r, nil
		}
	}

	return r, nil
}

// test runs Go tests with an overlay, and returns the name of one that fails.
func (s *session) test(ctx context.Context, overlay string, t [2]string) (name string) {
	cmd := exec.CommandContext(ctx, "go", "test", "-overlay", overlay, "-timeout", "2m", "-run", t[1], "./internal/"+t[0])
	cmd.Dir = s.root

	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}

	for line := range strings.Lines(string(out)) {
		if rest, is := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: "); is {
			name, _, _ = strings.Cut(rest, " ")

			return name
		}
	}

	return "" // it was not the test that failed
}

// describe describes what found each mutation.
func describe(results []result) string {
	var b strings.Builder

	b.WriteString(`# Mutations

<!-- written by make mutations -->

A proof that never fails proves nothing. ` + "`make mutations`" + ` puts bugs into the service, one at a time, and runs [trials](crash-points.md) until one fails. The service
without a bug passes all of these trials. A trial without a crash point only sends the load.

| bug | | found by | within | as |
|---|---|---|---:|---|
`)

	for _, r := range results {
		by, found := r.by, kindOf(r.found)
		if by == "" {
			by = "**nothing**"
		}

		fmt.Fprintf(&b, "| %s | %s | %s | %.0f s | %s |\n", r.Name, r.Means, by, r.after.Seconds(), found)
	}

	return b.String()
}

// kindOf returns the kind of a violation, without what differs from run to run.
func kindOf(violation string) string {
	first, _, _ := strings.Cut(violation, "; ")
	kind, _, _ := strings.Cut(first, ": ")

	return kind
}
