package outside_test

import (
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/cmd/proof/outside"
)

// post sends a request and returns what is readable of the answer.
func post(t *testing.T, client *http.Client, address string, form url.Values) string {
	t.Helper()

	answer, err := client.PostForm(address, form)
	if err != nil {
		return ""
	}

	defer func() { _ = answer.Body.Close() }()

	body, _ := io.ReadAll(answer.Body) // half an answer is an answer

	return string(body)
}

var intentID = regexp.MustCompile(`"pi_\d{8}"`)

// A client that repeats a request until it is answered is charged once, however the
// provider lies.
func TestAProviderThatLiesChargesOnce(t *testing.T) {
	t.Parallel()

	p, err := outside.StartProvider(1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	client := &http.Client{Timeout: 100 * time.Millisecond}
	created := post(t, client, p.URL+"/v1/payment_intents", url.Values{"amount": {"990"}, "currency": {"usd"}, "metadata[order_id]": {"o1"}})
	id := strings.Trim(intentID.FindString(created), `"`)

	p.Lie(100)

	for range 100 {
		post(t, client, p.URL+"/v1/payment_intents/"+id+"/confirm", nil)
		post(t, client, p.URL+"/v1/refunds", url.Values{"payment_intent": {id}})
	}

	charges := p.Charges()
	if len(charges) != 1 || charges[0].Order != "o1" || charges[0].Captures != 1 || len(charges[0].Refunds) != 1 || charges[0].Refunds[0].Amount != 990 {
		t.Errorf("the provider recorded %+v", charges)
	}

	if lies := p.Lies(); len(lies) < 9 {
		t.Errorf("it lied in %d ways: %v", len(lies), lies)
	}
}

func TestAnAmountThatEndsWith3IsDeclined(t *testing.T) {
	t.Parallel()

	p, err := outside.StartProvider(1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	created := post(t, http.DefaultClient, p.URL+"/v1/payment_intents", url.Values{"amount": {"993"}, "currency": {"usd"}})
	id := strings.Trim(intentID.FindString(created), `"`)

	if answer := post(t, http.DefaultClient, p.URL+"/v1/payment_intents/"+id+"/confirm", nil); !strings.Contains(answer, "card_declined") {
		t.Errorf("answered %s", answer)
	}

	if charges := p.Charges(); len(charges) != 1 || !charges[0].Declined || charges[0].Captures != 0 {
		t.Errorf("the provider recorded %+v", charges)
	}
}
