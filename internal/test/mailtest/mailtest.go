// Package mailtest provides a mail server for tests: SMTP with STARTTLS and password
// authentication. It keeps the e-mails that it accepts.
package mailtest

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Credentials that the server accepts.
const (
	User     = "shop"
	Password = "secret"
)

// Stage is a point in an SMTP conversation.
type Stage int

// Stages.
const (
	// Addressed is the stage after the recipient has been sent.
	Addressed Stage = iota
	// Accepted is the stage after the e-mail has been stored and before the response is
	// sent.
	Accepted
)

// Server is a running mail server on 127.0.0.1.
type Server struct {
	Port int
	// CAFile is the path of the server's certificate.
	CAFile string

	mu       sync.Mutex
	received []string
	logins   int
	// recipient and sender are the responses to RCPT and MAIL, with code 0 for
	// success.
	recipient, sender smtp.SMTPError
	plain             bool
	hook              func(Stage)
	config            *tls.Config
	listener          net.Listener
	server            *smtp.Server
}

// NewServer starts a server that stops when the test ends.
func NewServer(tb testing.TB) *Server {
	tb.Helper()

	return start(tb, false)
}

// NewPlainServer starts a server without TLS that does not require a login and
// accepts unencrypted passwords.
func NewPlainServer(tb testing.TB) *Server {
	tb.Helper()

	return start(tb, true)
}

func start(tb testing.TB, plain bool) *Server {
	tb.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}

	s := &Server{ //nolint:forcetypeassert // a TCP listener
		Port: listener.Addr().(*net.TCPAddr).Port, CAFile: filepath.Join(tb.TempDir(), "ca.pem"), hook: func(Stage) {}, plain: plain,
	}
	// The standard library's test server has a certificate for 127.0.0.1.
	web := httptest.NewTLSServer(nil)
	web.Close()

	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	if err := os.WriteFile(s.CAFile, certificate, 0o600); err != nil {
		tb.Fatal(err)
	}

	if !plain {
		s.config = &tls.Config{Certificates: web.TLS.Certificates, MinVersion: tls.VersionTLS12}
	}

	s.serve(listener)
	tb.Cleanup(s.Leave)

	return s
}

func (s *Server) serve(listener net.Listener) {
	s.listener, s.server = listener, smtp.NewServer(s)
	s.server.Domain, s.server.AllowInsecureAuth, s.server.TLSConfig = "localhost", s.plain, s.config

	go func(server *smtp.Server) { _ = server.Serve(listener) }(s.server)
}

// Leave ends the server: connections are refused from now on.
func (s *Server) Leave() {
	_ = s.listener.Close() // the server may not serve it yet
	_ = s.server.Close()
}

// Return makes the server accept connections again after Leave.
func (s *Server) Return(tb testing.TB) {
	tb.Helper()

	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
	if err != nil {
		tb.Fatal(err)
	}

	s.serve(listener)
}

// Received returns the accepted e-mails in order.
func (s *Server) Received() []string {
	s.mu.Lock()
	defer s.mu.Unlock()

	return slices.Clone(s.received)
}

// Logins returns the number of login attempts.
func (s *Server) Logins() int {
	s.mu.Lock()
	defer s.mu.Unlock()

	return s.logins
}

// Refuse makes the server respond to all recipients with an error, until it is called
// with code 0.
func (s *Server) Refuse(code int, enhanced [3]int, text string) {
	s.refuse(&s.recipient, code, enhanced, text)
}

// RefuseSender makes the server respond to all senders with an error, until it is
// called with code 0.
func (s *Server) RefuseSender(code int, enhanced [3]int, text string) {
	s.refuse(&s.sender, code, enhanced, text)
}

func (s *Server) refuse(answer *smtp.SMTPError, code int, enhanced [3]int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()

	*answer = smtp.SMTPError{Code: code, EnhancedCode: enhanced, Message: text}
}

func (s *Server) refuses(answer *smtp.SMTPError) error {
	s.mu.Lock()
	defer s.mu.Unlock()

	if answer.Code == 0 {
		return nil
	}

	refusal := *answer

	return &refusal
}

// At makes the server call hook at each stage of each conversation.
func (s *Server) At(hook func(Stage)) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.hook = hook
}

func (s *Server) at(stage Stage) {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()

	hook(stage)
}

// NewSession implements smtp.Backend.
func (s *Server) NewSession(conn *smtp.Conn) (smtp.Session, error) {
	return &session{server: s, conn: conn}, nil
}

type session struct {
	server *Server
	conn   *smtp.Conn
	login  bool
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		s.server.mu.Lock()
		s.server.logins++
		s.server.mu.Unlock()

		if _, encrypted := s.conn.TLSConnectionState(); !encrypted || user != User || password != Password {
			return smtp.ErrAuthFailed
		}

		s.login = true

		return nil
	}), nil
}

func (s *session) Mail(string, *smtp.MailOptions) error {
	if !s.login && !s.server.plain {
		return smtp.ErrAuthRequired
	}

	return s.server.refuses(&s.server.sender)
}

func (s *session) Rcpt(string, *smtp.RcptOptions) error {
	s.server.at(Addressed)

	return s.server.refuses(&s.server.recipient)
}

func (s *session) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}

	s.server.mu.Lock()
	s.server.received = append(s.server.received, string(data))
	s.server.mu.Unlock()

	s.server.at(Accepted)

	return nil
}

func (*session) Reset()        {}
func (*session) Logout() error { return nil }
