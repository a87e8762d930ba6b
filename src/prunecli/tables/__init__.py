"""Tables, figures and reports of measured models, beside those of the paper."""
