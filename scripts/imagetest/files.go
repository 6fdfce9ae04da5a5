package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The maximum sizes of the image in bytes, as transferred by a registry and as files. Both
// leave about 10% for additions. A change that exceeds them has probably made the linker
// keep unused methods; see the Makefile.
const (
	maxCompressed = 13_000_000
	maxUnpacked   = 36_500_000
)

// expected matches every path that the image may contain.
var expected = regexp.MustCompile(`^(millrace|sbom\.cdx\.json|etc/|etc/passwd|etc/group|configs/|configs/[a-z]+\.yaml)$`)

// image is what `podman image inspect` prints.
type image struct {
	Config struct {
		User            string
		Entrypoint, Cmd []string
		Labels          map[string]string
	}
	Healthcheck struct{ Test []string }
}

// load loads the image into Podman.
func (c *container) load(ctx context.Context) error {
	out, err := run(ctx, "podman", "load", "-q", "-i", c.archive)
	if err != nil {
		return err
	}

	_, c.tag, _ = strings.Cut(out, ": ")

	settings, err := run(ctx, "podman", "image", "inspect", c.tag)
	if err != nil {
		return err
	}

	var images []image
	if err := json.Unmarshal([]byte(settings), &images); err != nil || len(images) != 1 {
		return fmt.Errorf("podman image inspect prints %s: %w", settings, err)
	}

	c.image = images[0]

	return nil
}

// inspect checks the image's settings and files.
func (c *container) inspect(ctx context.Context) error {
	config := c.image.Config

	compressed, unpacked, paths, err := c.files(ctx)
	if err != nil {
		return err
	}

	fmt.Printf("         %.1f MB to pull (compressed), %.1f MB unpacked\n", float64(compressed)/1e6, float64(unpacked)/1e6)

	errs := []error{
		check(config.User == "65532:65532", "the user is %q, expected 65532:65532", config.User),
		check(slices.Equal(config.Entrypoint, []string{"/millrace"}), "the entry point is %q", config.Entrypoint),
		check(slices.Equal(config.Cmd, []string{"serve"}), "the command is %q", config.Cmd),
		check(len(c.image.Healthcheck.Test) > 1, "the health check is %q", c.image.Healthcheck.Test),
		check(compressed <= maxCompressed, "%d bytes compressed, expected at most %d", compressed, maxCompressed),
		check(unpacked <= maxUnpacked, "%d bytes unpacked, expected at most %d", unpacked, maxUnpacked),
		check(slices.Contains(paths, "millrace") && slices.Contains(paths, "sbom.cdx.json"), "the program or its bill of materials is missing"),
		check(config.Labels["org.opencontainers.image.version"] == c.version, "the labels are %v, expected version %s", config.Labels, c.version),
	}

	for _, path := range paths {
		errs = append(errs, check(expected.MatchString(path), "unexpected file %s", path))
	}

	return errors.Join(errs...)
}

func check(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}

	return fmt.Errorf(format, args...)
}

// files returns the sizes and paths of all files of the image.
func (c *container) files(ctx context.Context) (compressed, unpacked int64, paths []string, err error) {
	archive := filepath.Join(filepath.Dir(c.archive), c.name+".tar")
	defer os.Remove(archive) //nolint:errcheck // a temporary file

	id, err := run(ctx, "podman", "create", c.tag)
	if err != nil {
		return 0, 0, nil, err
	}

	c.later("podman", "rm", id)

	if _, err := run(ctx, "podman", "export", "-o", archive, id); err != nil {
		return 0, 0, nil, err
	}

	content, err := os.Open(filepath.Clean(archive))
	if err != nil {
		return 0, 0, nil, err
	}
	defer content.Close() //nolint:errcheck // it is only read

	counted := &counter{}
	packer := gzip.NewWriter(counted)
	files := tar.NewReader(io.TeeReader(content, packer))

	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return counted.bytes, unpacked, paths, packer.Close()
		}

		if err != nil {
			return 0, 0, nil, err
		}

		paths, unpacked = append(paths, header.Name), unpacked+header.Size
	}
}

// counter counts the bytes written to it.
type counter struct{ bytes int64 }

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	c.bytes += int64(len(p))

	return len(p), nil
}
