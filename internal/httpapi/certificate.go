package httpapi

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is a certificate in files that are renewed while the service is running. A
// handshake reads the files again if they have changed. If they do not match, as in
// the middle of a renewal, the previous certificate stays in use.
type certificate struct {
	certFile, keyFile string
	logger            *slog.Logger

	mu      sync.Mutex
	loaded  *tls.Certificate
	version string // of the files last read
}

func newCertificate(certFile, keyFile string, logger *slog.Logger) *certificate {
	return &certificate{certFile: certFile, keyFile: keyFile, logger: logger}
}

// get implements tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()

	version, err := c.onDisk()

	if err == nil && version != c.version {
		var pair tls.Certificate

		c.version = version
		if pair, err = tls.LoadX509KeyPair(c.certFile, c.keyFile); err == nil {
			c.loaded = &pair
			c.logger.Info("certificate loaded", slog.String("file", c.certFile), slog.Time("expires", pair.Leaf.NotAfter))
		}
	}

	if err == nil || c.loaded != nil {
		if err != nil {
			c.logger.Warn("cannot read the new certificate; the previous one stays in use", slog.Any("error", err))
		}

		return c.loaded, nil
	}

	return nil, fmt.Errorf("reading http.cert_file and http.key_file: %w", err)
}

// onDisk returns the version of the files on disk.
func (c *certificate) onDisk() (version string, err error) {
	for _, name := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return "", err
		}

		version += fmt.Sprintln(info.ModTime().Format(time.RFC3339Nano), info.Size())
	}

	return version, nil
}
