package money_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/shop/money"
)

func TestAmountsAreReadFromNumbersAndStringsAndWrittenAsNumbers(t *testing.T) {
	t.Parallel()

	for in, out := range map[string]string{`99.99`: `99.99`, `"99.99"`: `99.99`, `1e2`: `100`, `0`: `0`, `"0.10"`: `0.1`} {
		var amount money.Amount
		if err := json.Unmarshal([]byte(in), &amount); err != nil {
			t.Fatalf("%s: %v", in, err)
		}

		if data, err := json.Marshal(amount); err != nil || string(data) != out {
			t.Errorf("%s became %s, %v, expected %s", in, data, err, out)
		}
	}
}

func TestParseRefusesTextThatIsNotAnAmount(t *testing.T) {
	t.Parallel()

	for _, text := range []string{"", "NaN", "Infinity", "ten", "1e1000000000", "1e-1000000000", strings.Repeat("9", 50), "true"} {
		if amount, err := money.Parse(text); err == nil {
			t.Errorf("%q became %s", text, amount)
		}
	}
}

func TestCheckDependsOnTheCurrency(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ amount, currency, says string }{
		{"99.99", "USD", ""},
		{"100", "JPY", ""},
		{"1.234", "KWD", ""},
		{"0", "EUR", ""},
		{"99.999", "USD", "total: is 99.999, expected at most 2 decimal places in USD"},
		{"0.5", "JPY", "at most 0 decimal places"},
		{"-1", "USD", "total: is -1, expected 0 or more"},
		{"1e18", "USD", "expected less than 10^18"},
		{"1", "usd", `currency: is "usd"`},
		{"1", "ZZZ", `currency: is "ZZZ"`},
	} {
		amount := money.MustParse(c.amount)
		err := money.Check("total", &amount, c.currency)

		if (err == nil) != (c.says == "") || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s %s: got %v, expected %q", c.amount, c.currency, err, c.says)
		}
	}

	if err := money.Check("total", nil, "USD"); err == nil || !strings.Contains(err.Error(), "total: is missing") {
		t.Errorf("missing: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"99.99", "1e5", "-0", ".5", "1e-40"} {
		f.Add(seed)
	}

	f.Fuzz(func(t *testing.T, text string) {
		amount, err := money.Parse(text)
		if err != nil {
			return
		}

		again, err := money.Parse(amount.String())
		if err == nil && !again.Equal(amount) {
			t.Errorf("%q became %s and then %s", text, amount, again)
		}

		if len(amount.String()) > 200 {
			t.Errorf("%q became %d characters", text, len(amount.String()))
		}
	})
}
