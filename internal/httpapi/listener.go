package httpapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// listener serves one address.
type listener struct {
	// key is the configuration key of the address.
	key, addr string
	server    *http.Server
	bound     atomic.Value
}

// newListener returns a listener for handler. It serves TLS with certificate, unless
// that is nil.
func newListener(key, addr string, handler http.Handler, certificate *certificate, logger *slog.Logger) *listener {
	l := &listener{key: key, addr: addr, server: &http.Server{
		Handler:           secured(recovered(logger, handler)),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          log.New(serverLog{logger}, "", 0),
	}}

	if certificate != nil {
		l.server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate.get}
	}

	return l
}

// serverLog logs the errors of a server. Clients that abort a handshake are routine.
type serverLog struct{ logger *slog.Logger }

// Write implements io.Writer.
func (l serverLog) Write(line []byte) (int, error) {
	level := slog.LevelWarn
	if bytes.HasPrefix(line, []byte("http: TLS handshake error")) {
		level = slog.LevelDebug
	}

	l.logger.Log(context.Background(), level, strings.TrimSpace(string(line)))

	return len(line), nil
}

// listen binds the address and serves in the background until close.
func (l *listener) listen() error {
	socket, err := net.Listen("tcp", l.addr)
	if err != nil {
		return fmt.Errorf("listening on %s %s: %w (set %s to a free port)", l.key, l.addr, err, l.key)
	}

	l.bound.Store(socket.Addr().String())

	go func() {
		if l.server.TLSConfig != nil {
			_ = l.server.ServeTLS(socket, "", "")
		} else {
			_ = l.server.Serve(socket)
		}
	}()

	return nil
}

// address returns the address that the listener is bound to, or "" before listen.
func (l *listener) address() string {
	addr, _ := l.bound.Load().(string)

	return addr
}

// close waits for requests in progress until ctx ends.
func (l *listener) close(ctx context.Context) error {
	if err := l.server.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("closing the listener of %s: %w", l.key, err), l.server.Close())
	}

	return nil
}
