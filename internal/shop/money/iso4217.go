package money

import (
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
)

// DefaultCurrency is the currency of messages without one.
const DefaultCurrency = "USD"

// ISO 4217 currencies by number of decimal places, from List One of its maintenance
// agency SIX, published 2026-09-17. Codes that are not currencies are left out:
// funds (IsFund in the list, such as CLF), and codes without a minor unit (metals,
// bond market units, XDR, XSU, XUA, XTS for tests and XXX for no currency). To update
// the table, replace testdata/list-one.csv: a test compares the two.
//
// Do not use golang.org/x/text/currency: its list dates from 2017 and has historic
// codes, and its decimal places are those of the printed form in CLDR, such as 0 for
// PKR and COP.
var currencies = places(map[int32]string{
	0: `BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF`,
	2: `AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY
		COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF
		IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR
		MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG
		SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES
		WST XCD XCG YER ZAR ZMW ZWG`,
	3: `BHD IQD JOD KWD LYD OMR TND`,
})

func places(codes map[int32]string) map[string]int32 {
	table := map[string]int32{}

	for n, list := range codes {
		for code := range strings.FieldsSeq(list) {
			table[code] = n
		}
	}

	return table
}

// Places returns the number of decimal places of a currency. known is false for codes
// that are not ISO 4217 currencies.
func Places(code string) (places int32, known bool) {
	places, known = currencies[code]

	return places, known
}

// Currency is the currency of a message that may omit it. A message without a
// currency has [DefaultCurrency]. A message whose currency is null or empty is
// different: its producer did not know the currency.
type Currency string

// UnmarshalJSON reads a code without checking it.
func (c *Currency) UnmarshalJSON(data []byte) error {
	var code *string
	if err := json.Unmarshal(data, &code); err != nil {
		return errors.New("is not a JSON string, expected an ISO 4217 code such as " + DefaultCurrency)
	}

	if code == nil || *code == "" {
		return fmt.Errorf("is %s, expected an ISO 4217 code such as %s; omit the field to use %[2]s", data, DefaultCurrency)
	}

	*c = Currency(*code)

	return nil
}

// Code returns the code, or DefaultCurrency if the message has none.
func (c Currency) Code() string {
	if c == "" {
		return DefaultCurrency
	}

	return string(c)
}
