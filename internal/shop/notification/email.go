package notification

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed" // the templates
	"errors"
	"fmt"
	htmltemplate "html/template"
	netmail "net/mail"
	"os"
	"regexp"
	"strings"
	texttemplate "text/template"
	"time"

	"github.com/wneessen/go-mail"

	"github.com/millracehq/millrace/internal/engine/event"
)

//go:embed templates/message.txt
var textSource string

//go:embed templates/message.html
var htmlSource string

var (
	textBody = texttemplate.Must(texttemplate.New("text").Parse(textSource))
	htmlBody = htmltemplate.Must(htmltemplate.New("html").Parse(htmlSource))
)

// smtpTimeout bounds each step of a conversation with the mail server.
const smtpTimeout = 10 * time.Second

// maxSubject is how many characters of the content make the subject.
const maxSubject = 78 // RFC 5322, section 2.1.1

// mailer sends e-mails over SMTP, a connection each.
type mailer struct {
	cfg     EmailConfig
	options []mail.Option
	domain  string
}

// newMailer returns nil when no server is configured.
func newMailer(cfg EmailConfig) (*mailer, error) {
	if cfg.Host == "" {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}

	settings := &tls.Config{ServerName: cfg.Host, MinVersion: tls.VersionTLS12}

	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("notification.email.ca_file: %w", err)
		}

		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("notification.email.ca_file: %s has no certificate", cfg.CAFile)
		}
	}

	options := []mail.Option{mail.WithPort(cfg.Port), mail.WithTimeout(smtpTimeout), mail.WithTLSConfig(settings)}

	switch cfg.TLS {
	case fullTLS:
		options = append(options, mail.WithSSL())
	case startTLS:
		options = append(options, mail.WithTLSPolicy(mail.TLSMandatory))
	default:
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
	}

	if cfg.User != "" {
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover),
			mail.WithUsername(cfg.User), mail.WithPassword(string(cfg.Password)))
	}

	from, err := netmail.ParseAddress(cfg.From)
	if err != nil {
		return nil, fmt.Errorf("notification.email.from: %w", err)
	}

	return &mailer{cfg: cfg, options: options, domain: from.Address[strings.LastIndex(from.Address, "@")+1:]}, nil
}

func (m *mailer) send(ctx context.Context, e event.Event[Requested]) (Delivery, error) {
	msg, err := m.compose(e)
	if err != nil {
		return Delivery{}, event.Reject(err)
	}

	client, err := mail.NewClient(m.cfg.Host, m.options...)
	if err != nil {
		return Delivery{}, fmt.Errorf("preparing the connection to the mail server: %w", err)
	}

	if err := client.DialAndSendWithContext(ctx, msg); err != nil {
		// An answer that came counts, whatever became of the connection later.
		if msg.IsDelivered() {
			return Delivery{Answer: msg.ServerResponse()}, nil
		}

		return Delivery{}, refusal(err, e.Payload.address)
	}

	return Delivery{Answer: msg.ServerResponse()}, nil
}

// refusal tells what the server refuses for good, which is the message's own
// fault, from what may go better later, and both from a server that takes
// nobody's e-mail now: one that cannot be reached, does not let us in, or does
// not take our sender. After the sender is taken it is about this message: it
// may even have arrived, so it is not sent again for ever.
func refusal(err error, address string) error {
	const permanent = 500 // RFC 5321, section 4.2.1

	said := discreet(err, address)

	refused, handedOver := errors.AsType[*mail.SendError](err)

	switch {
	case !handedOver, refused.Reason == mail.ErrSMTPMailFrom, refused.Reason == mail.ErrConnCheck:
		return event.Unavailable(MailServer, said)
	case refused.ErrorCode() >= permanent:
		return event.Reject(fmt.Errorf("the mail server refused the e-mail: %w", said))
	default:
		return event.Later(0, fmt.Errorf("sending e-mail: %w", said))
	}
}

// discreet returns an error without the address of the recipient, which the
// library adds and servers like to repeat: errors are logged and kept.
func discreet(err error, address string) error {
	text, _, _ := strings.Cut(err.Error(), ", affected ")
	if address != "" {
		text = regexp.MustCompile(`(?i)`+regexp.QuoteMeta(address)).ReplaceAllLiteralString(text, "(address)")
	}

	return errors.New(text)
}

func (m *mailer) compose(e event.Event[Requested]) (*mail.Msg, error) {
	msg := mail.NewMsg()
	// One who receives the same id twice has the same e-mail twice.
	msg.SetMessageIDWithValue(e.ID.String() + "@" + m.domain)
	msg.SetDate()
	msg.Subject(subject(e.Payload.Content))

	if err := msg.From(m.cfg.From); err != nil {
		return nil, fmt.Errorf("addressing e-mail: %w", err)
	}

	if err := msg.To(e.Payload.address); err != nil {
		return nil, fmt.Errorf("addressing e-mail to user %s: %w", e.Payload.UserID, err)
	}

	data := struct{ Subject, Content string }{subject(e.Payload.Content), e.Payload.Content}

	if err := msg.SetBodyTextTemplate(textBody, data); err != nil {
		return nil, fmt.Errorf("writing e-mail: %w", err)
	}

	if err := msg.AddAlternativeHTMLTemplate(htmlBody, data); err != nil {
		return nil, fmt.Errorf("writing e-mail: %w", err)
	}

	return msg, nil
}

// subject is the first line of the content, as far as it fits.
func subject(content string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(content), "\n")
	runes := []rune(strings.TrimSpace(line))

	if len(runes) > maxSubject {
		return string(runes[:maxSubject-3]) + "..."
	}

	return string(runes)
}
