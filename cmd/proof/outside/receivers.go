package outside

import (
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/millracehq/millrace/cmd/proof/record"
)

// inbox keeps what a receiver accepted, and decides whether it fails.
type inbox struct {
	mu      sync.Mutex
	random  *rand.Rand
	percent int
	down    bool
	failed  int
	list    []record.Delivery
}

// Fail makes the receiver fail this percentage of the deliveries.
func (b *inbox) Fail(percent int) {
	b.mu.Lock()
	defer b.mu.Unlock()

	b.percent = percent
}

// Down makes the receiver refuse everything, or work again.
func (b *inbox) Down(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()

	b.down = down
}

// Failed returns how many deliveries failed.
func (b *inbox) Failed() int {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.failed
}

// Accepted returns the deliveries in order.
func (b *inbox) Accepted() []record.Delivery {
	b.mu.Lock()
	defer b.mu.Unlock()

	return slices.Clone(b.list)
}

// fails decides whether the next delivery fails; way is a number that decides how.
func (b *inbox) fails() (way int, fails bool) {
	b.mu.Lock()
	defer b.mu.Unlock()

	fails = b.down || b.random.IntN(100) < b.percent
	if fails {
		b.failed++
	}

	return b.random.IntN(100), fails
}

func (b *inbox) accept(d record.Delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()

	b.list = append(b.list, d)
}

// Mail is a mail server without TLS.
type Mail struct {
	inbox

	// Port is where it listens on loopback.
	Port   int
	server *smtp.Server
}

// StartMail starts a mail server. The seed decides which e-mails it refuses for now.
func StartMail(seed uint64) (*Mail, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}

	m := &Mail{Port: listener.Addr().(*net.TCPAddr).Port} //nolint:forcetypeassert // a TCP listener
	m.random = rand.New(rand.NewPCG(seed, 3))
	m.server = smtp.NewServer(m)
	m.server.Domain = "localhost"
	m.server.ErrorLog = log.New(io.Discard, "", 0)

	go func() { _ = m.server.Serve(listener) }() // until Close

	return m, nil
}

// Close stops the server.
func (m *Mail) Close() { _ = m.server.Close() }

// NewSession implements smtp.Backend.
func (m *Mail) NewSession(conn *smtp.Conn) (smtp.Session, error) {
	return &session{mail: m, conn: conn}, nil
}

type session struct {
	mail *Mail
	conn *smtp.Conn
}

// Mail implements smtp.Session.
func (*session) Mail(string, *smtp.MailOptions) error { return nil }

// Rcpt implements smtp.Session.
func (s *session) Rcpt(string, *smtp.RcptOptions) error {
	way, fails := s.mail.fails()

	switch {
	case !fails:
		return nil
	case way < 50:
		_ = s.conn.Conn().Close()

		return io.ErrClosedPipe
	default:
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 2}, Message: "try again later"}
	}
}

var messageID = regexp.MustCompile(`(?mi)^Message-ID: <([^@>]+)`)

// Data implements smtp.Session. If it fails, it has kept the e-mail all the same.
func (s *session) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}

	d := record.Delivery{Body: string(data)}
	if found := messageID.FindStringSubmatch(d.Body); found != nil {
		d.ID = found[1]
	}

	s.mail.accept(d)

	if _, fails := s.mail.fails(); fails {
		_ = s.conn.Conn().Close()

		return io.ErrClosedPipe
	}

	return nil
}

// Reset implements smtp.Session.
func (*session) Reset() {}

// Logout implements smtp.Session.
func (*session) Logout() error { return nil }

// Webhooks receives webhooks.
type Webhooks struct {
	inbox

	// URL is its address.
	URL    string
	server *http.Server
}

// StartWebhooks starts a receiver. The seed decides which webhooks it refuses for now.
func StartWebhooks(seed uint64) (*Webhooks, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}

	w := &Webhooks{URL: "http://" + listener.Addr().String() + "/"}
	w.random = rand.New(rand.NewPCG(seed, 4))
	w.server = &http.Server{Handler: w, ReadHeaderTimeout: time.Minute}

	go func() { _ = w.server.Serve(listener) }() // until Close

	return w, nil
}

// Close stops the receiver.
func (w *Webhooks) Close() { _ = w.server.Close() }

// ServeHTTP implements http.Handler. Half of the failures come after it has kept the
// webhook.
func (w *Webhooks) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}

	way, fails := w.fails()
	if !fails || way < 50 {
		w.accept(record.Delivery{ID: r.Header.Get("Webhook-Id"), Body: string(data)})
	}

	switch {
	case fails && way%2 == 0:
		hangUp(out)
	case fails:
		out.WriteHeader([]int{http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusNotFound}[way%3])
	}
}
