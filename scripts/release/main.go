// Command release builds the archives of a release, with the same bytes wherever it runs.
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// platforms are the operating systems and processors of a release.
var platforms = []platform{
	{"darwin", "amd64"},
	{"darwin", "arm64"},
	{"linux", "amd64"},
	{"linux", "arm64"},
	{"windows", "amd64"},
	{"windows", "arm64"},
}

type platform struct{ system, processor string }

func (p platform) program() string {
	if p.system == "windows" {
		return "millrace.exe"
	}

	return "millrace"
}

// release is what all archives have in common.
type release struct {
	version string
	// at is the modification time of all files.
	at time.Time
	// toolchain is the Go version in go.mod. Another one produces different programs.
	toolchain string
	out, work string
	// documents are the files that all archives contain, by path in the archive.
	documents map[string]string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1) //nolint:gocritic // stop only restores the signals
	}
}

func run(ctx context.Context) (err error) {
	version := flag.String("version", "", "version of the release")
	epoch := flag.String("time", "", "time of all files, in seconds since 1970: that of the commit")
	out := flag.String("out", "dist", "directory for the archives; its contents are deleted")
	flag.Parse()

	seconds, err := strconv.ParseInt(*epoch, 10, 64)
	if err != nil || *version == "" {
		return fmt.Errorf("expected -version, and a number of seconds in -time, not %q", *epoch)
	}

	r := &release{version: *version, at: time.Unix(seconds, 0).UTC(), out: *out}

	if r.work, err = os.MkdirTemp("", "millrace-release-*"); err != nil {
		return err
	}
	defer os.RemoveAll(r.work) //nolint:errcheck // a temporary directory

	if err := r.prepare(ctx); err != nil {
		return err
	}

	var sums strings.Builder

	for _, p := range platforms {
		archive, err := r.build(ctx, p)
		if err != nil {
			return fmt.Errorf("%s/%s: %w", p.system, p.processor, err)
		}

		content, err := os.ReadFile(archive)
		if err != nil {
			return err
		}

		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), filepath.Base(archive))
		fmt.Fprintf(os.Stderr, "%s, %.1f MB\n", archive, float64(len(content))/1e6)
	}

	return os.WriteFile(filepath.Join(r.out, "SHA256SUMS"), []byte(sums.String()), 0o644) //nolint:gosec // everybody may read a release
}

// prepare empties the directory for the archives and collects the documents. This
// machine's program writes those that describe the command line.
func (r *release) prepare(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.GoVersion}}").Output()
	if err != nil {
		return fmt.Errorf("reading the Go version in go.mod: %w", err)
	}

	r.toolchain = "go" + strings.TrimSpace(string(out))

	if err := os.RemoveAll(r.out); err != nil {
		return err
	}

	manuals := filepath.Join(r.work, "man")
	for _, dir := range []string{r.out, manuals} {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // everybody may read a release
			return err
		}
	}

	host := platform{runtime.GOOS, runtime.GOARCH}

	program, err := r.compile(ctx, host)
	if err != nil {
		return err
	}

	r.documents = map[string]string{"LICENSE": "LICENSE", "README.md": "README.md"}

	if _, err := r.ask(ctx, program, "man", manuals); err != nil {
		return err
	}

	pages, err := filepath.Glob(filepath.Join(manuals, "*.1"))
	if err != nil {
		return err
	}

	for _, page := range pages {
		r.documents["man/man1/"+filepath.Base(page)] = page
	}

	for name, shell := range map[string]string{"millrace.bash": "bash", "_millrace": "zsh", "millrace.fish": "fish", "millrace.ps1": "powershell"} {
		script, err := r.ask(ctx, program, "completion", shell)
		if err != nil {
			return err
		}

		file := filepath.Join(r.work, name)
		if err := os.WriteFile(file, script, 0o644); err != nil { //nolint:gosec // everybody may read a release
			return err
		}

		r.documents["completions/"+name] = file
	}

	return nil
}

// ask runs the program without the configuration of whoever makes the release.
func (r *release) ask(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Stderr = r.work, os.Stderr
	cmd.Env = []string{"TZ=UTC", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.at.Unix())}

	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("millrace %s: %w", strings.Join(args, " "), err)
	}

	return out, nil
}

// compile builds the program for a platform. Nothing in the program depends on this
// machine, its directories or its environment.
func (r *release) compile(ctx context.Context, p platform) (string, error) {
	program := filepath.Join(r.work, p.system+"_"+p.processor, p.program())

	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags", "grpcnotrace,timetzdata", "-ldflags", "-s -w -X main.version="+r.version, "-o", program, "./cmd/millrace")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.system, "GOARCH="+p.processor, "GOTOOLCHAIN="+r.toolchain,
		"GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "GOFLAGS=", "GOWORK=off", "GOFIPS140=off")

	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compiling: %w\n%s", err, out)
	}

	return program, nil
}

// build writes the archive of a platform and returns its path.
func (r *release) build(ctx context.Context, p platform) (string, error) {
	program, err := r.compile(ctx, p)
	if err != nil {
		return "", err
	}

	bill := filepath.Join(filepath.Dir(program), "sbom.cdx.json")

	cmd := exec.CommandContext(ctx, "go", "-C", "tools/sbom", "tool", "cyclonedx-gomod", "bin", "-json", "-std", "-noserial", "-notimestamp",
		"-version", r.version, "-output", bill, program)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("writing the bill of materials: %w\n%s", err, out)
	}

	name := fmt.Sprintf("millrace_%s_%s_%s", r.version, p.system, p.processor)

	files := []file{{name + "/" + p.program(), program, 0o755}, {name + "/sbom.cdx.json", bill, 0o644}}
	for path, source := range r.documents {
		files = append(files, file{name + "/" + path, source, 0o644})
	}

	if p.system == "windows" {
		return r.zip(name, files)
	}

	return r.tar(name, files)
}
