package crash

import (
	"io"
	"log"
	"maps"
	"net"
	"net/mail"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

// mailServer accepts e-mails and counts them by their Message-ID. It postpones those that
// say so, and takes a while for each.
type mailServer struct {
	port   int
	server *smtp.Server

	mu       sync.Mutex
	received map[string]int
}

func newMailServer() (*mailServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}

	m := &mailServer{received: map[string]int{}}
	m.server = smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return mailSession{m}, nil }))
	m.server.Domain = "localhost"
	m.server.ErrorLog = log.New(io.Discard, "", 0) // connections end with the processes that are killed

	if address, is := listener.Addr().(*net.TCPAddr); is {
		m.port = address.Port
	}

	go func() { _ = m.server.Serve(listener) }()

	return m, nil
}

// copies returns how often each e-mail arrived, by the id of its message.
func (m *mailServer) copies() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()

	return maps.Clone(m.received)
}

type mailSession struct{ *mailServer }

func (mailSession) Reset()                               {}
func (mailSession) Logout() error                        { return nil }
func (mailSession) Mail(string, *smtp.MailOptions) error { return nil }
func (mailSession) Rcpt(string, *smtp.RcptOptions) error { return nil }

// Data implements smtp.Session.
func (s mailSession) Data(r io.Reader) error {
	message, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}

	if message.Header.Get("Subject") == refused {
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "try again later"}
	}

	time.Sleep(100 * time.Millisecond) // long enough for another process or lease to send it too

	id, _, _ := strings.Cut(strings.Trim(message.Header.Get("Message-ID"), "<>"), "@")

	s.mu.Lock()
	defer s.mu.Unlock()

	s.received[id]++

	return nil
}
